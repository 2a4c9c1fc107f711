"""How many processes may train an adapter is found out before any weight is loaded."""

import os

import pytest

from tasks.config import LaunchSettings, TrainingSettings
from tasks.errors import UserError
from tasks.launching import check_processes, num_processes
from tasks.launching import processes as module


@pytest.mark.parametrize(("gpus", "expected"), [([], 1), (["2", "5"], 2)])
def test_auto_is_one_process_a_gpu(
    gpus: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without GPUs, one process uses all cores."""
    monkeypatch.setattr(module, "gpus", lambda: gpus)
    assert num_processes(LaunchSettings(num_processes="auto")) == expected


@pytest.mark.parametrize(
    ("count", "training", "num_rows", "message"),
    [
        (1000, {"batch_size": 1000}, None, r"is 1000, but this machine has no GPU and \d+ CPU cor"),
        (2, {"batch_size": 1}, None, "more than the rows of an optimizer step, 1 .* raise these"),
        (2, {}, 1, "is 2, but there are 1 training rows"),
    ],
)
def test_too_many_processes_are_refused(
    count: int,
    training: dict[str, int],
    num_rows: int | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process needs a device of its own and a row of each step."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    settings = TrainingSettings.model_validate(training)
    with pytest.raises(UserError, match=message):
        check_processes(LaunchSettings(num_processes=count), settings, num_rows)


def test_as_many_as_devices_and_rows_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, two rows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    settings = TrainingSettings(batch_size=1, gradient_accumulation_steps=2)
    check_processes(LaunchSettings(num_processes=2), settings, 2)
