"""Train an adapter in several processes, from the process that shows, records and is signalled."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks import errors
from tasks.config import TrainingSettings
from tasks.errors import AdapterflowError, StoppedError
from tasks.launching.processes import gpus
from tasks.launching.work import Failure, Outcome, Work, WorkFolder
from tasks.records import DataRecord, InjectedRecord, TrainedRecord
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from tasks.engine.training import OnTraining
    from tasks.launching.ranks import Ranks

_SECONDS_BETWEEN_LOOKS = 0.1
_LOST_PEER = "LostPeerError"
_SMALLER_BATCHES = "SmallerBatchesError"


class DeadProcessError(RuntimeError):
    """A process of the group died; another attempt resumes from the last checkpoint."""


class GroupResult(NamedTuple):
    """What a training in several processes came to."""

    trained: TrainedRecord
    peak_memory_bytes: tuple[int, ...]
    peak_gpu_bytes: tuple[int, ...]
    """Of each process."""


def train_in_processes(  # noqa: PLR0913 - a training has this many inputs
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    checkpoints: Path,
    size: int,
    on_progress: "OnTraining",
    *,
    on_evaluating: Callable[[int, int], None] | None = None,
    on_reference: Callable[[int, int], None] | None = None,
    on_earlier: "OnTraining | None" = None,
    should_stop: Callable[[], bool] = lambda: False,
    max_eval_rows: int | None = None,
) -> GroupResult:
    """Train as `tasks.engine.train_adapter` does, in `size` processes, from the records alone.

    Whatever this function ends with, and even if this process is killed, no process is left.

    Args:
        injected: the model with its adapter.
        data: the run's data record.
        settings: of the training.
        checkpoints: the folder of the checkpoints; `launch` beside it is for the processes.
        size: the number of processes.
        on_progress: called at every step and for everything logged.
        on_evaluating: called with the number of held-out rows evaluated so far, and of all.
        on_reference: called with the number of pairs that the reference was computed for so far,
            and of all, where the objective has one.
        on_earlier: called for everything that attempts before this one logged.
        should_stop: whether to save a checkpoint and stop.
        max_eval_rows: evaluate on at most this many held-out rows, the first ones.

    Raises:
        AdapterflowError: as `train_adapter` does.
        DeadProcessError: a process died; the message says which one, and of what.
    """
    from tasks.launching.reports import Reports

    folder = WorkFolder(checkpoints.with_name("launch"))
    _forget_other_reports(folder, injected, data, settings, checkpoints)
    reports = Reports(folder.reports, on_progress, on_evaluating, on_reference)
    reports.repeat(on_earlier or (lambda _: None))
    while True:
        folder.clear()
        with tempfile.TemporaryDirectory() as meeting:
            work = Work(
                injected=injected,
                data=data,
                settings=settings,
                checkpoints=checkpoints,
                max_eval_rows=max_eval_rows,
                size=size,
                parent=os.getpid(),
                meeting_point=Path(meeting) / "store",
            )
            write_atomically(folder.work, work.model_dump_json())
            failures = _run(folder, size, reports.relay, should_stop)
        if not any(one.kind == _SMALLER_BATCHES for one in failures.values()):
            break
    if failures:
        raise _error(failures, folder, size)
    return _result(Outcome.model_validate_json(folder.outcome.read_bytes()), folder)


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


def _run(
    folder: WorkFolder, size: int, relay: Callable[[], None], should_stop: Callable[[], bool]
) -> dict[int, Failure]:
    """Run the processes to their end; return the failure of each that failed by itself."""
    with _started(folder, size) as ranks:
        while (result := ranks.wait(0)) is None:
            relay()
            if should_stop():
                folder.stop.touch()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    relay()
    failed = {
        rank: _failure(folder, rank, one.exitcode, one.pid)
        for rank, one in result.failures.items()
        if rank in (ranks.died_first or ()) or folder.failure(rank).exists()
    }
    # Those that only lost another one are no cause, unless there is no other.
    causes = {rank: one for rank, one in failed.items() if one.kind != _LOST_PEER}
    return causes or failed


@contextmanager
def _started(folder: WorkFolder, size: int) -> "Iterator[Ranks]":
    """Start the processes; none is left after the block."""
    from tasks.launching.ranks import Ranks

    ranks = Ranks(folder, {rank: _environment(rank, size) for rank in range(size)})
    try:
        ranks.start()
        yield ranks
    finally:
        ranks.kill()


def _environment(rank: int, size: int) -> dict[str, str]:
    """Return what differs for a process: its GPU, and its part of the threads of this one."""
    import torch

    threads = max(1, torch.get_num_threads() // size)
    found = gpus()
    return {
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        # They talk on this machine only.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _loopback()),
        **({"CUDA_VISIBLE_DEVICES": found[rank]} if found else {}),
    }


def _loopback() -> str:
    import psutil

    return next((name for name in psutil.net_if_addrs() if name.startswith("lo")), "lo")


def _failure(folder: WorkFolder, rank: int, exit_code: int, pid: int) -> Failure:
    """Return what a process left as its failure, else what its exit code says."""
    file = folder.failure(rank)
    if file.exists():
        return Failure.model_validate_json(file.read_bytes())
    if exit_code >= 0:
        return Failure(kind="", message=f"process {pid} exited with status {exit_code}")
    name = signal.Signals(-exit_code).name
    reason = ", as the kernel does where memory runs out" if -exit_code == signal.SIGKILL else ""
    return Failure(kind="", message=f"process {pid} was killed by {name}{reason}")


def _error(failures: dict[int, Failure], folder: WorkFolder, size: int) -> Exception:
    """Return the error to raise for the failures of processes."""
    rank, failure = min(failures.items())
    known = getattr(errors, failure.kind, None)
    if isinstance(known, type) and issubclass(known, AdapterflowError):
        return known(failure.message)
    reason = f"{failure.kind}: {failure.message}" if failure.kind else failure.message
    others = len(failures) - 1
    more = f" (and {others} more)" if others else ""
    return DeadProcessError(f"rank {rank} of {size} died{more}: {reason}; see {folder.log(rank)}")


def _result(outcome: Outcome, folder: WorkFolder) -> GroupResult:
    if outcome.trained is None:
        raise StoppedError(outcome.stopped)
    folder.clear()
    folder.reports.unlink(missing_ok=True)
    folder.folder.rmdir()
    return GroupResult(outcome.trained, outcome.peak_memory_bytes, outcome.peak_gpu_bytes)
