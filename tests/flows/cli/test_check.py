"""What `adapterflow check` says is what then happens, and it leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config
from tiny_models import tiny_mixture

from flows.cli import runs
from flows.cli.check import forecast_of, print_forecast
from tasks.config import DataSettings, TrainAdapterConfig
from tasks.engine.forecast import Forecast
from tasks.errors import UserError
from tasks.runtime import home
from tasks.validate_inputs import _report


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> TrainAdapterConfig:
    """Configure a run of seconds, with steps of five rows, of which the last has three."""
    training: dict[str, object] = {"batch_size": 5, "eval_steps": 3}
    return tiny_config(tiny_base, sums(tmp_path / "sums.jsonl"), training=training)


def test_the_counts_are_those_of_the_run(prefect_server: None, config: TrainAdapterConfig) -> None:
    """Steps, evaluations, parameters, tokens and batching are what the run then records."""
    found = forecast_of(config, with_probe=True)
    report = runs.execute(runs.create_run(config))
    trained, injected = report.trained, report.trained.injected
    evaluations = [point for point in trained.loss_curve if point.eval_loss is not None]
    assert found.num_steps == trained.num_steps
    assert found.num_evaluations == len(evaluations)
    assert found.num_trainable_parameters == injected.num_trainable_parameters
    assert found.num_total_parameters == injected.num_total_parameters
    assert found.data == report.data.model_copy(update={"tokens": ()})
    assert found.probe
    assert found.probe.batching == trained.batching


def test_the_probe_measures(config: TrainAdapterConfig) -> None:
    """Memory and seconds are those of real steps and evaluations."""
    probe = forecast_of(config, with_probe=True).probe
    assert probe
    assert probe.peak_memory_bytes > probe.base_bytes > 0
    assert probe.seconds_per_step > 0
    assert probe.seconds_per_evaluation > 0


def test_without_a_probe_nothing_is_guessed(
    tiny_base: Path, config: TrainAdapterConfig, tmp_path: Path
) -> None:
    """The base's weights, which are spoiled, are not loaded, and the time is not known."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000] + b"\xff" * 1000)  # NaN, behind a valid header
    settings = config.base_model.model_copy(update={"source": str(base)})
    found = forecast_of(config.model_copy(update={"base_model": settings}), with_probe=False)
    assert (found.probe, found.seconds_training) == (None, None)


def test_what_is_not_read_is_named(
    config: TrainAdapterConfig,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The check and the run's log say which columns are not read, and of how many rows."""
    file = Path(config.data.sources[0].path)
    file.write_text(file.read_text().replace("{", '{"id": 1, ', 3))
    print_forecast(found := forecast_of(config, with_probe=False))
    _report(found.data)
    assert "id (3 rows)" in capsys.readouterr().out
    assert "not read: id (3 rows)" in caplog.text


def test_what_rows_lose_is_said(
    config: TrainAdapterConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The check and the run's log say the same of rows that are not trained on as they stand."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns[1]["reasoning_content"] = "so"
    rows = [{"messages": turns, "weight": weight} for weight in (0, 1, 1)]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"train": str(file), "on_lost_answer": "drop", "eval_fraction": 0, "format": "auto"}
    data = DataSettings.model_validate(more)
    found = forecast_of(config.model_copy(update={"data": data}), with_probe=False)
    print_forecast(found)
    _report(found.data)
    out = capsys.readouterr().out
    for said in ("1 training rows are dropped, as none of", "2 answers in training rows are tr"):
        assert said in out
        assert said in caplog.text


def test_nothing_is_left(
    config: TrainAdapterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check makes no run folder and no store, and keeps no tokens."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    forecast_of(config, with_probe=True)
    assert not home.home().exists()


def test_a_mistake_is_the_runs_own(config: TrainAdapterConfig) -> None:
    """What would stop the run stops the check, with the same message."""
    lora = config.lora.model_copy(update={"target_modules": ["q_prj"]})
    with pytest.raises(UserError, match="did you mean q_proj"):
        forecast_of(config.model_copy(update={"lora": lora}), with_probe=False)


def test_experts_are_counted_without_a_weight(config: TrainAdapterConfig, tmp_path: Path) -> None:
    """The check counts adapted experts as PEFT does, and tells of frozen ones, and of routers."""
    base = tiny_mixture("mixtral", tmp_path / "experts")
    wanted = config.base_model.model_copy(update={"source": str(base)})

    def found(targets: str) -> Forecast:
        lora = config.lora.model_copy(update={"r": 4, "target_modules": targets})
        changes = {"base_model": wanted, "lora": lora}
        return forecast_of(config.model_copy(update=changes), with_probe=False)

    assert found("all-linear").num_trainable_parameters == 15_104
    assert "the routers (gate) stay frozen" in found("all-linear").notes[0]
    (warning,) = [one for one in found("q_proj").warnings if "experts" in one]
    assert "gate_up_proj, down_proj (MixtralExperts); to adapt them, add experts to" in warning
