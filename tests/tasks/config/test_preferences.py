"""The settings of preferences: senseless ones are refused with the reason."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.config import (
    LossType,
    PreferenceSettings,
    TrainAdapterConfig,
    TrainingSettings,
)


def test_the_defaults_are_those_of_trl() -> None:
    """Parameters of the same names have TRL's defaults."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    theirs = trl.DPOConfig.__dataclass_fields__
    ours = PreferenceSettings().model_dump(mode="json")
    for name, value in ours.items():
        default = theirs[name]
        made = default.default_factory() if name == "loss_type" else default.default
        assert value == made, name


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
        ({"beta": 0}, "it is 0, but must be above 0: with 0 the loss of a pair would not depend"),
        ({"beta": -1}, "below 0 the rejected answer would be learned"),
        ({"loss_type": "aot"}, "aot sorts all pairs of a batch"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, "aot_unpaired sorts all pairs of a batch"),
        ({"loss_type": "bco_pair"}, "possible: sigmoid, hinge, ipo, robust"),
        ({"loss_type": "dpo"}, "Input should be 'sigmoid', 'hinge'"),
        ({"loss_type": []}, "at least 1 item"),
        ({"loss_type": "sft"}, "learns nothing from the rejected answers"),
        ({"loss_type": ["ipo", "ipo"]}, "loss_type has ipo twice"),
        ({"loss_weights": [1, 2]}, "loss_weights has 2 numbers and loss_type 1 losses"),
        ({"loss_weights": [0]}, "loss_weights has 0; weights must be above 0"),
        ({"label_smoothing": 0.1}, "label_smoothing is for the loss robust"),
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
