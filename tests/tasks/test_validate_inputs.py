"""What is validated before step 1 is what the steps work with."""

import json
import shutil
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config

from tasks import engine
from tasks.config import TrainAdapterConfig
from tasks.errors import UserError
from tasks.load_base_model import load_base_model
from tasks.records import InputsRecord, RunRecord
from tasks.validate_inputs import validate_inputs


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """Copy the tiny base, to change it."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def config(base: Path, tmp_path: Path) -> TrainAdapterConfig:
    """Configure a run with a choice that is resolved by the architecture."""
    lora: dict[str, object] = {"target_modules": "all-linear"}
    return tiny_config(base, sums(tmp_path / "sums.jsonl"), lora=lora)


def edit(base: Path) -> Path:
    """Change the base's configuration, and not its weights."""
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 1e-3}))
    return file


def test_lora_is_resolved_once(config: TrainAdapterConfig, tmp_path: Path) -> None:
    """The LoRA configuration resolved before a weight is loaded is that of the loaded base."""
    resolved = validate_inputs.fn(config, tmp_path).lora
    _, base = engine.load_base(config.base_model)
    assert engine.configure_lora(resolved, base, 3) == engine.configure_lora(config.lora, base, 3)
    assert "down_proj" in resolved.peft_config.target_modules


def test_the_record_survives_json(config: TrainAdapterConfig, tmp_path: Path) -> None:
    """A resumed run reads the same base, configuration and data."""
    record = validate_inputs.fn(config, tmp_path)
    assert InputsRecord.model_validate_json(record.model_dump_json()) == record


def test_inputs_are_validated_again_for_an_edited_base(
    config: TrainAdapterConfig, base: Path, tmp_path: Path
) -> None:
    """Tokens and configuration of the former base are stale, so that the record does not count."""
    record = validate_inputs.fn(config, tmp_path)
    assert record.is_intact()
    file = edit(base)
    assert record.spoiled_files() == [file]


def test_a_base_that_changed_while_the_run_waited_is_refused(
    config: TrainAdapterConfig, base: Path, tmp_path: Path
) -> None:
    """Its tokens and its configuration would be those of another base."""
    data = validate_inputs.fn(config, tmp_path).data
    edit(base)
    run = RunRecord(
        tracking_uri="", experiment="", run_name="", flow_run_id="", folder=tmp_path / "run"
    )
    with pytest.raises(UserError, match="has changed since this run validated its inputs"):
        load_base_model.fn(config.base_model, data, run)
