"""Settings that were renamed are read by their former names for one release."""

import logging
from pathlib import Path

import pytest

from tasks.config import LoraSettings, TrainAdapterConfig, TrainingSettings
from tasks.config.reading import read_config
from tasks.config.section import Section
from tasks.errors import UserError

FORMER = [
    (TrainingSettings, {"optimizer": "adamw"}, {"optim": "adamw_torch"}),
    (TrainingSettings, {"lr_scheduler": "linear"}, {"lr_scheduler_type": "linear"}),
    (TrainingSettings, {"keep_best": False}, {"load_best_model_at_end": False}),
    (LoraSettings, {"init": "pissa"}, {"init_lora_weights": "pissa"}),
]


@pytest.mark.parametrize(("section", "former", "now"), FORMER)
def test_a_former_name_means_the_new_one(
    section: type[Section],
    former: dict[str, object],
    now: dict[str, object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The settings are equal, and a warning names the new name, also for a deployment's."""
    with caplog.at_level(logging.WARNING):
        assert section.model_validate(former) == section.model_validate(now)
    assert all(name in caplog.text for name in now)
    assert "deploy again" in caplog.text


def test_both_names_at_once_are_a_mistake(tmp_path: Path) -> None:
    """Nobody can say which of the two is meant."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "{base_model: {source: x/y}, data: {train: rows.jsonl}, training: {keep_best: true}}"
    )
    with pytest.raises(UserError, match="keep_best is now load_best_model_at_end"):
        read_config(file, ["training.load_best_model_at_end=false"])
    assert not read_config(file, ["training.keep_best=false"]).training.load_best_model_at_end


def test_the_form_shows_the_new_names_only() -> None:
    """Prefect's form is made of the schema, which knows no former name."""
    schema = str(TrainAdapterConfig.model_json_schema())
    assert "optim" in schema
    assert "keep_best" not in schema
