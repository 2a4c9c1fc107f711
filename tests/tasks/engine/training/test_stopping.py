"""A training that is asked to stop saves a checkpoint, and loses no step."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from engine_steps import at_question, injected, prepared, rebuilt, training

from tasks import engine
from tasks.config import LoraSettings, TrainingSettings
from tasks.engine.training.callbacks import TrainingProgress
from tasks.errors import StoppedError
from tasks.records import InjectedRecord, TrainedRecord

DROPOUT = LoraSettings(r=4, lora_dropout=0.3)
WAYS: dict[str, dict[str, object]] = {
    "evaluated after each epoch": {"num_train_epochs": 3, "max_steps": None},
    "evaluated every other step": {"eval_steps": 2, "logging_steps": 3, "max_steps": 5},
    "stopped early": {
        "eval_steps": 1,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "early_stopping_patience": 1,
    },
}


def attempt(
    record: InjectedRecord,
    folder: Path,
    settings: TrainingSettings,
    should_stop: Callable[[], bool] = lambda: False,
    seen: list[TrainingProgress] | None = None,
) -> TrainedRecord:
    """Train as a new process does."""
    seen = [] if seen is None else seen
    data = prepared(record.lora.base, folder).record
    return engine.train_adapter(
        rebuilt(record),
        record,
        data,
        settings,
        folder / "checkpoints",
        seen.append,
        should_stop=should_stop,
    )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_run_stopped_at_any_moment_ends_as_if_it_had_not_been(
    tiny_base: Path, tmp_path: Path, way: dict[str, object]
) -> None:
    """Stopped after any step and in any evaluation, it does nothing twice and nothing otherwise."""
    settings = training(**{"eval_steps": None, "batch_size": 4} | way)
    _, record = injected(tiny_base, tmp_path, DROPOUT)
    whole = attempt(record, tmp_path / "whole", settings)
    seen: list[TrainingProgress] = []
    number, num_attempts = 1, 0
    while True:
        num_attempts += 1
        num_seen = len(seen)
        with suppress(StoppedError):
            last = attempt(record, tmp_path / "cut", settings, at_question(number), seen)
            break
        # Stopped in the same evaluation as the attempt before, the next one gets further.
        number = 1 if len(seen) > num_seen else number + 1
    assert num_attempts > whole.num_steps
    assert last.weights.sha256 == whole.weights.sha256
    assert last.loss_curve == whole.loss_curve
    assert last.best_step == whole.best_step
    steps = [now.step for now in seen if not now.metrics]
    assert steps == list(range(1, whole.num_steps + 1))
