"""The short form's six settings, and the training that they stand for."""

import pytest
from pydantic import ValidationError

from tasks.config import QuickTraining, TrainAdapterConfig

GIVEN = {"base": "org/model", "train": "rows.jsonl"}


@pytest.mark.parametrize(
    ("held_out", "data"),
    [
        ("0.1", {"eval_fraction": 0.1}),
        (" 20 %", {"eval_fraction": 0.2}),
        ("0", {"eval_fraction": 0.0}),
        ("0,25", {"eval_fraction": 0.25}),
        ("12,5%", {"eval_fraction": 0.125}),
        ("./1/4", {"eval": "./1/4"}),
        ("org/2024", {"eval": "org/2024"}),
        ("held_out.jsonl", {"eval": "held_out.jsonl"}),
    ],
)
def test_it_is_the_training_of_these_settings(held_out: str, data: dict[str, object]) -> None:
    """Each of the six arrives where the full form has it, and the rest is as by default."""
    quick = QuickTraining(
        **GIVEN, held_out=held_out, adapter_name="mine", epochs=2.5, experiment="tries"
    )
    assert quick.expanded() == TrainAdapterConfig.model_validate(
        {
            "base_model": {"source": "org/model"},
            "data": {"train": "rows.jsonl", **data},
            "lora": {"adapter_name": "mine"},
            "training": {"num_train_epochs": 2.5},
            "tracking": {"experiment": "tries"},
        }
    )


def test_what_is_left_empty_has_the_full_form_s_default() -> None:
    """Base and data alone are a training."""
    general = {"base_model": {"source": "org/model"}, "data": {"train": "rows.jsonl"}}
    assert QuickTraining(**GIVEN).expanded() == TrainAdapterConfig.model_validate(general)


def test_spaces_that_were_copied_along_are_no_part_of_a_value() -> None:
    """A value comes from a web page or a terminal, with what stands around it there."""
    copied = QuickTraining(
        base=" org/model\n", train="\trows.jsonl ", held_out=" 0.2 ", experiment=" tries "
    )
    wanted = QuickTraining(**GIVEN, held_out="0.2", experiment="tries")
    assert copied.expanded() == wanted.expanded()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"held_out": "120 %"}, "held_out is 120 %; a share of the training rows"),
        ({"held_out": "nan"}, "held_out is nan; a share of the training rows"),
        ({"held_out": "10"}, "such as 0.1 or 10 %"),
        ({"held_out": "1/4"}, "such as 0.1 or 10 %"),
        ({"held_out": "25 percent"}, "such as 0.1 or 10 %"),
        ({"held_out": "50%%"}, "such as 0.1 or 10 %"),
        ({"base": " "}, "at least 1 character"),
        ({"base": "package:not a name"}, "names no package"),
        ({"adapter_name": "../up"}, "adapter_name"),
        ({"train": ""}, "at least 1 character"),
    ],
)
def test_a_mistake_is_found_before_the_run(wrong: dict[str, str], message: str) -> None:
    """What the full form would refuse, the short one refuses, too."""
    with pytest.raises(ValidationError, match=message):
        QuickTraining.model_validate({**GIVEN, **wrong})
