"""Which steps of a run are to run anew, whatever is kept of them.

A step's kept record belongs to a generation of that step. Asking for a redo begins a new one for
the step and those after it; so a redo that is interrupted is gone on with, and not begun again.
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
    """What of a run was asked to be done again, and when last."""

    generations: dict[str, int] = Field(default_factory=dict)
    parameter: StepName | None = None
    """The flow's parameter as it was carried out last."""
    first_step: StepName | None = None
    time_ms: int = 0


_generations: ContextVar[dict[str, int] | None] = ContextVar("_generations", default=None)


@dataclass
class Generation(CachePolicy):
    """The step's generation as part of what its record is found by."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],  # noqa: ARG002 - Prefect's signature
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> str | None:
        """Give the generation; nothing for the first."""
        number = (_generations.get() or {}).get(task_ctx.task.name, 0)
        return f"generation {number}" if number else None


@contextmanager
def redoing(run: RunRecord, parameter: StepName | None) -> Iterator[None]:
    """Let steps take the records of the run's current generations.

    Args:
        run: the run.
        parameter: the flow's parameter, which asks once: a retry of the flow run repeats it.
    """
    if parameter and read(run.folder).parameter != parameter:
        ask(run.folder, parameter, by_parameter=True)
    redone = read(run.folder)
    if redone.first_step:
        Tracker(run).begin_anew(redone.first_step, redone.time_ms)
    token = _generations.set(redone.generations)
    try:
        yield
    finally:
        _generations.reset(token)


def ask(run_folder: Path, first: StepName, *, by_parameter: bool = False) -> None:
    """Ask that a step, those after it and the report run anew; a training from its first row."""
    steps = first.and_after()
    if StepName.TRAIN_ADAPTER in steps:
        shutil.rmtree(checkpoints_in(run_folder), ignore_errors=True)
    before = read(run_folder)
    generations = {**before.generations}
    generations.update((name, generations.get(name, 0) + 1) for name in [*steps, _REPORT])
    after = Redone(
        generations=generations,
        parameter=first if by_parameter else before.parameter,
        first_step=first,
        time_ms=time.time_ns() // 1_000_000,
    )
    write_atomically(run_folder / _FILE, after.model_dump_json())


def read(run_folder: Path) -> Redone:
    """Give what was asked of the run in this folder."""
    file = run_folder / _FILE
    return Redone.model_validate_json(file.read_bytes()) if file.exists() else Redone()
