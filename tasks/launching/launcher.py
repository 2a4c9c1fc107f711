"""Train an adapter in several processes, from the process that shows, records and is signalled."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks import errors
from tasks.config import LaunchSettings, TrainingSettings
from tasks.errors import AdapterflowError, StoppedError
from tasks.launching.local_group import run_here
from tasks.launching.processes import num_processes
from tasks.launching.work import Failure, Outcome, Sharded, Work, WorkFolder
from tasks.records import DataRecord, InjectedRecord, TrainedRecord

if TYPE_CHECKING:
    from tasks.engine.training import OnTraining
    from tasks.launching.reports import Reports

    RunGroup = Callable[[WorkFolder, Work, Reports, Callable[[], bool]], dict[int, Failure]]
    """Runs the processes to their end; returns the failure of each that failed by itself."""

_SMALLER_BATCHES = "SmallerBatchesError"


class DeadProcessError(RuntimeError):
    """A process of the group died; another attempt resumes from the last checkpoint."""


class GroupResult(NamedTuple):
    """What a training in several processes came to."""

    trained: TrainedRecord
    peak_memory_bytes: tuple[int, ...]
    peak_gpu_bytes: tuple[int, ...]
    """Of each process."""
    sharded: Sharded | None = None
    """What each process has of the base, if it is not all of it."""


def train_in_processes(  # noqa: PLR0913 - a training has this many inputs
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    checkpoints: Path,
    launch: LaunchSettings,
    on_progress: "OnTraining",
    *,
    on_evaluating: Callable[[int, int], None] | None = None,
    on_reference: Callable[[int, int], None] | None = None,
    on_earlier: "OnTraining | None" = None,
    should_stop: Callable[[], bool] = lambda: False,
    max_eval_rows: int | None = None,
) -> GroupResult:
    """Train as `tasks.engine.train_adapter` does, in the processes of `launch`, from the records.

    Whatever this function ends with, and even if this process is killed, no process is left.

    Args:
        injected: the model with its adapter.
        data: the run's data record.
        settings: of the training.
        checkpoints: the folder of the checkpoints; `launch` beside it is for the processes.
        launch: how many processes, and where.
        on_progress: called at every step and for everything logged.
        on_evaluating: called with the number of held-out rows evaluated so far, and of all.
        on_reference: called with the number of pairs that the reference was computed for so far,
            and of all, where the objective has one.
        on_earlier: called for everything that attempts before this one logged.
        should_stop: whether to save a checkpoint and stop.
        max_eval_rows: evaluate on at most this many held-out rows, the first ones.

    Raises:
        AdapterflowError: as `train_adapter` does.
        UserError: there is no such cluster, or a host of it does not see the folder or the base.
        DeadProcessError: a process died; the message says which one, and of what.
    """
    from tasks.launching.reports import Reports

    size = num_processes(launch)
    folder = WorkFolder(checkpoints.with_name("launch"))
    _forget_other_reports(folder, injected, data, settings, checkpoints)
    reports = Reports(folder.reports, on_progress, on_evaluating, on_reference)
    reports.repeat(on_earlier or (lambda _: None))
    work = Work(
        injected=injected,
        data=data,
        settings=settings,
        checkpoints=checkpoints,
        max_eval_rows=max_eval_rows,
        size=size,
        shards=launch.shards,
    )
    with _group(launch) as run:
        while True:
            folder.prepare()
            failures = run(folder, work, reports, should_stop)
            if not any(one.kind == _SMALLER_BATCHES for one in failures.values()):
                break
    if failures:
        raise _error(failures, folder, size)
    return _result(Outcome.model_validate_json(folder.outcome.read_bytes()), folder)


def _group(launch: LaunchSettings) -> AbstractContextManager["RunGroup"]:
    """Return what runs the processes, for a while."""
    if launch.cluster is None:
        return nullcontext(run_here)
    from tasks.launching.ray_group import ray_group

    return ray_group(launch)


def _forget_other_reports(
    folder: WorkFolder,
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    checkpoints: Path,
) -> None:
    """Remove reports unless they are of a training that is resumed from a checkpoint."""
    from tasks.engine.training import Checkpoints, training_identity

    kept = Checkpoints(checkpoints)
    is_resumed = kept.plan(training_identity(injected, data, settings)) and kept.newest()
    if not is_resumed:
        folder.reports.unlink(missing_ok=True)


def _error(failures: dict[int, Failure], folder: WorkFolder, size: int) -> Exception:
    """Return the error to raise for the failures of processes."""
    rank, failure = min(failures.items())
    known = getattr(errors, failure.kind, None)
    if isinstance(known, type) and issubclass(known, AdapterflowError):
        return known(failure.message)
    reason = f"{failure.kind}: {failure.message}" if failure.kind else failure.message
    others = len(failures) - 1
    more = f" (and {others} more)" if others else ""
    log = folder.log(rank)
    see = f"; see {log}" if log.exists() else ""
    return DeadProcessError(f"rank {rank} of {size} died{more}: {reason}{see}")


def _result(outcome: Outcome, folder: WorkFolder) -> GroupResult:
    if outcome.trained is None:
        raise StoppedError(outcome.stopped)
    folder.remove()
    return GroupResult(
        outcome.trained, outcome.peak_memory_bytes, outcome.peak_gpu_bytes, outcome.sharded
    )
