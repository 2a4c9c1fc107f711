"""The settings of preferences: senseless ones are refused with the reason."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.config import (
    LearningObjective,
    LossType,
    PreferenceSettings,
    TrainAdapterConfig,
    TrainingSettings,
)


def test_the_defaults_are_those_of_trl() -> None:
    """Parameters of the same names have TRL's defaults."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    configs = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "orpo": ORPOConfig, "simpo": CPOConfig}
    for objective, config in configs.items():
        theirs = config.__dataclass_fields__
        ours = PreferenceSettings().of(LearningObjective(objective))
        for name, value in ours.model_dump(mode="json").items():
            if name in theirs and name != "loss_type":
                assert value == theirs[name].default, name
    default = trl.DPOConfig.__dataclass_fields__["loss_type"].default_factory()
    assert PreferenceSettings().of(LearningObjective.DPO).loss_type == default
    assert PreferenceSettings().of(LearningObjective.KTO).loss_type == [trl.KTOConfig.loss_type]


def test_the_identity_of_earlier_trainings_on_pairs_stays() -> None:
    """It depends on the objective's settings alone, given or by default, and was so before."""

    def identity(preferences: dict[str, Any]) -> str:
        training = {"objective": "dpo", "preferences": preferences}
        given = {"base_model": {"source": "a"}, "data": {"train": "b"}, "training": training}
        return TrainAdapterConfig.model_validate(given).sha256()

    written = {"loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0}
    assert identity({}) == identity({"beta": 0.1, **written}) != identity({"beta": 0.2})
    settings = TrainingSettings.model_validate({"objective": "dpo", "preferences": {}})
    assert settings.with_defaults()["preferences"] == {"beta": 0.1, **written}
    for objective in ("dpo", "kto", "orpo", "simpo"):
        given = TrainingSettings.model_validate({"objective": objective, "preferences": {}})
        assert TrainingSettings.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.parametrize(
    ("objective", "given", "message"),
    [
        ("dpo", {"label_smoothing": 0.1}, "label_smoothing is for the loss robust"),
        ("dpo", {"simpo_gamma": 1}, "simpo_gamma was given, but objective is dpo, whose settings"),
        ("dpo", {"loss_type": "kto"}, "kto is not a loss of objective dpo; possible: sigmoid"),
        ("kto", {"loss_type": "sigmoid"}, "possible: kto, apo_zero_unpaired"),
        ("kto", {"loss_type": ["kto", "apo_zero_unpaired"]}, "but kto has one"),
        ("kto", {"loss_weights": [1]}, "loss_weights was given, but objective is kto"),
        ("kto", {"desirable_weight": 0}, "greater than 0"),
        ("orpo", {"loss_type": "sigmoid"}, "whose settings are beta; remove loss_type"),
        ("simpo", {"beta": 0}, "with 0 the loss would not depend"),
    ],
)
def test_settings_of_another_objective_are_refused(
    objective: str, given: dict[str, Any], message: str
) -> None:
    """One message names the setting, and those that there are."""
    with pytest.raises(ValidationError, match=message) as caught:
        TrainingSettings.model_validate({"objective": objective, "preferences": given})
    assert caught.value.error_count() == 1


def test_a_step_of_a_single_row_has_none_to_be_mismatched_with() -> None:
    """The loss kto needs two rows a step, of one batch or of several."""
    given = {"objective": "kto", "batch_size": 1}
    with pytest.raises(ValidationError, match="raise batch_size or"):
        TrainingSettings.model_validate(given)
    TrainingSettings.model_validate(given | {"gradient_accumulation_steps": 2})
    TrainingSettings.model_validate(given | {"preferences": {"loss_type": "apo_zero_unpaired"}})


def test_one_loss_need_not_be_a_list() -> None:
    """A name alone is a list of one; every loss has a weight."""
    assert PreferenceSettings.model_validate({"loss_type": "ipo"}).weights == ((LossType.IPO, 1.0),)
    both = {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 2]}
    settings = PreferenceSettings.model_validate(both)
    assert settings.weights == ((LossType.SIGMOID, 0.5), (LossType.SFT, 2.0))
    assert settings.text == "0.5 sigmoid + 2 sft, beta 0.1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "it is 0, but must be above 0: with 0 the loss would not depend"),
        ({"beta": -1}, "below 0 the rejected one would be learned"),
        ({"loss_type": "aot"}, "aot sorts all pairs of a batch"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, "aot_unpaired sorts all pairs of a batch"),
        ({"loss_type": "bco_pair"}, "possible: sigmoid, hinge, ipo, robust"),
        ({"loss_type": "dpo"}, "Input should be 'sigmoid', 'hinge'"),
        ({"loss_type": []}, "at least 1 item"),
        ({"loss_type": "sft"}, "learns nothing from the rejected answers"),
        ({"loss_type": ["ipo", "ipo"]}, "loss_type has ipo twice"),
        ({"loss_weights": [1, 2]}, "loss_weights has 2 numbers and loss_type 1 losses"),
        ({"loss_weights": [0]}, "loss_weights has 0; weights must be above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_senseless_settings_are_refused(given: dict[str, Any], message: str) -> None:
    """One message that says why."""
    with pytest.raises(ValidationError, match=message):
        PreferenceSettings.model_validate(given)


def test_settings_that_would_do_nothing_are_refused() -> None:
    """Preferences without their objective, and noise that a pair can't have."""
    with pytest.raises(ValidationError, match="preferences were given, but objective is sft"):
        TrainingSettings.model_validate({"preferences": {}})
    with pytest.raises(ValidationError, match="noise would differ between the answers"):
        TrainingSettings.model_validate({"objective": "dpo", "neftune_noise_alpha": 5})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_model": {"source": "a/b", "task": "seq2seq"}}, "base_model.task is seq2seq"),
        ({"data": {"train": "a.jsonl", "loss_on": "all"}}, "data.loss_on is all; use completion"),
    ],
)
def test_pairs_need_a_language_model_and_answers(given: dict[str, Any], message: str) -> None:
    """What another section says is part of the message."""
    whole = {"base_model": {"source": "a/b"}, "data": {"train": "a.jsonl"}}
    config = whole | {"training": {"objective": "dpo"}} | given
    with pytest.raises(ValidationError, match=message):
        TrainAdapterConfig.model_validate(config)
