"""Run steps of a run again, although they have persisted records.

How often a step was asked to run again is part of its cache key. A redo raises this count once, for
the step and those after it. So an interrupted redo is resumed, not started over: the records that
it has written have the new key.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import Field

from tasks.durability.step_name import StepName
from tasks.records import Record, RunRecord, checkpoints_in
from tasks.runtime.atomic_files import write_atomically
from tasks.tracking import Tracker

_REPORT = "publish_report"
_FILE = "redo.json"


class Redone(Record):
    """Which steps of a run were asked to run again, and when last."""

    generations: dict[str, int] = Field(default_factory=dict)
    """By step, how often it was asked to run again."""
    parameter: StepName | None = None
    """The flow's parameter as last applied."""
    first_step: StepName | None = None
    time_ms: int = 0
    """Of the last redo, in milliseconds since 1970-01-01 UTC."""


# A step's cache policy is made when its module is imported; the counts are those of the flow run
# that is being executed.
_redo_counts: ContextVar[dict[str, int] | None] = ContextVar("_redo_counts", default=None)


@dataclass
class RedoCount(CachePolicy):
    """Make the number of redos of a step part of its cache key."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],  # noqa: ARG002 - Prefect's signature
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> str | None:
        """Return the number of redos as text; None without any."""
        number = (_redo_counts.get() or {}).get(task_ctx.task.name, 0)
        # Runs of earlier versions have this word in their keys.
        return f"generation {number}" if number else None


@contextmanager
def redoing(run: RunRecord, parameter: StepName | None) -> Iterator[None]:
    """Apply the run's redos to the steps in the block.

    Args:
        run: the run.
        parameter: the flow's parameter. It is applied once, as a retry of the flow run repeats it.
    """
    if parameter and read(run.folder).parameter != parameter:
        ask(run.folder, parameter, by_parameter=True)
    redone = read(run.folder)
    if redone.first_step:
        Tracker(run).mark_redo(redone.first_step, redone.time_ms)
    token = _redo_counts.set(redone.generations)
    try:
        yield
    finally:
        _redo_counts.reset(token)


def ask(run_folder: Path, first: StepName, *, by_parameter: bool = False) -> None:
    """Request that a step, those after it and the report run again; training starts from step 0."""
    steps = first.and_after()
    if StepName.TRAIN_ADAPTER in steps:
        # Otherwise the training would resume from its last step, and do nothing.
        shutil.rmtree(checkpoints_in(run_folder), ignore_errors=True)
    before = read(run_folder)
    counts = {**before.generations}
    counts.update((name, counts.get(name, 0) + 1) for name in [*steps, _REPORT])
    after = Redone(
        generations=counts,
        parameter=first if by_parameter else before.parameter,
        first_step=first,
        time_ms=time.time_ns() // 1_000_000,
    )
    write_atomically(run_folder / _FILE, after.model_dump_json())


def read(run_folder: Path) -> Redone:
    """Return which redos were requested of the run in this folder."""
    file = run_folder / _FILE
    return Redone.model_validate_json(file.read_bytes()) if file.exists() else Redone()
