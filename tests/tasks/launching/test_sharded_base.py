"""Processes that have a part of the base each train what one process with all of it does."""

from pathlib import Path

import pytest
from chaos_ranks import ranks_in
from engine_steps import injected, prepared, rebuilt, training
from equal_trainings import assert_equal_training
from preference_pairs import data_of, preferring
from safetensors import safe_open
from tiny_models import tiny_llama

from tasks import engine
from tasks.config import BaseModelSettings, LaunchSettings, LoraSettings
from tasks.engine.training import TrainingProgress
from tasks.launching import train_in_processes
from tasks.launching.launcher import DeadProcessError, GroupResult

pytestmark = pytest.mark.slow
SHARDED = LaunchSettings.model_validate({"num_processes": 2, "strategy": "fsdp"})
MOST_OF_THE_BASE = 0.6


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_a_sharded_base_is_trained_on_as_a_whole_one_is(tmp_path: Path, quantization: str) -> None:
    """Equal losses and adapter but for rounding, and killed and resumed the same bytes.

    Each process has at most 0.6 of the base, though their numbers of micro-batches differ, and what
    they write has the adapter only.
    """
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    given = {"source": str(base), "dtype": "float32", "quantization": quantization}
    settings = BaseModelSettings.model_validate(given)
    _, record = injected(base, tmp_path, LoraSettings(r=4), settings)
    data = prepared(record.lora.base, tmp_path).record
    # Of five rows one process has two, and the longest ones fill a micro-batch each.
    many = training(max_steps=20, learning_rate=1e-3, eval_steps=5, batch_size=5, batch_tokens=16)
    one = engine.train_adapter(rebuilt(record), record, data, many, tmp_path / "one" / "c")

    def sharded(name: str, kill_at: int = 0) -> GroupResult:
        def kill(now: TrainingProgress) -> None:
            if now.step == kill_at and not now.metrics:
                [second] = [one for one in ranks_in(tmp_path) if one.cmdline()[-1] == "1"]
                second.kill()

        folder = tmp_path / name / "checkpoints"
        return train_in_processes(record, data, many, folder, SHARDED, kill)

    whole = sharded("whole")
    assert_equal_training(one, whole.trained)
    assert whole.trained.best_step == one.best_step
    assert whole.sharded is not None
    assert whole.sharded.share <= MOST_OF_THE_BASE
    assert min(whole.sharded.loading_peak_bytes) > whole.sharded.whole_bytes

    with pytest.raises(DeadProcessError, match=r"rank 1 of 2 died: .* was killed by SIGKILL"):
        sharded("cut", kill_at=6)
    resumed = sharded("cut").trained
    assert resumed.weights.sha256 == whole.trained.weights.sha256
    assert resumed.loss_curve == whole.trained.loss_curve
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("checkpoint-*/*.safetensors"))
    assert checkpoints
    for file in checkpoints:
        with safe_open(file, "pt") as weights:
            assert all("lora_" in name for name in weights.keys())  # noqa: SIM118 - no mapping


def test_a_sharded_base_learns_judged_answers_as_a_whole_one_does(tmp_path: Path) -> None:
    """The reference, and the mismatched rows of each step, are passes that all compute, too."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    _, record = injected(base, tmp_path)
    settings = preferring(
        objective="kto",
        preferences={"beta": 1, "undesirable_weight": 0.01},
        batch_size=3,
        batch_tokens=30,
        learning_rate=1e-3,
        max_steps=9,
    )
    data = data_of(record.lora.base, tmp_path, settings.objective).record
    one = engine.train_adapter(rebuilt(record), record, data, settings, tmp_path / "one" / "c")
    two = train_in_processes(
        record, data, settings, tmp_path / "two" / "checkpoints", SHARDED, lambda _: None
    ).trained
    assert_equal_training(one, two)
    assert two.eval_metrics == pytest.approx(one.eval_metrics, rel=1e-3, abs=1e-5)
