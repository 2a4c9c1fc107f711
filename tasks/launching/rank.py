"""A process of a group that trains one adapter: `python -m tasks.launching.rank FOLDER RANK`.

It loads the base, adds the adapter and trains its share of the rows, all from the record in the
folder. It ends with the process that started it, whatever that ends by, and hears no signal itself:
a machine that shuts down sends SIGTERM to all.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StoppedError
from tasks.launching.work import Failure, Outcome, Work, WorkFolder
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.libraries import exempt_from_collection, import_uncollected
from tasks.runtime.measuring import peak_gpu_bytes, peak_memory_bytes

if TYPE_CHECKING:
    from tasks.engine.training import Group

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_SECONDS_BETWEEN_LOOKS = 1.0


def main(folder: WorkFolder, rank: int) -> int:
    """Train; return the exit status. What failed is in the folder, and in the log."""
    os.dup2(2, 1)  # what libraries print goes to the log, too
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        work = Work.model_validate_json(folder.work.read_bytes())
        _end_with(work.parent)
        outcome = _train(folder, work, rank)
    except BaseException as error:  # noqa: BLE001 - it is reported, whatever it is
        traceback.print_exc()
        failure = Failure(kind=type(error).__name__, message=str(error))
        write_atomically(folder.failure(rank), failure.model_dump_json())
        return 1
    if rank == 0:
        write_atomically(folder.outcome, outcome.model_dump_json())
    return 0


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends, even if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGKILL)

    # Where there is no such signal; and the parent may have ended before it was asked for.
    threading.Thread(target=watch, daemon=True).start()


def _train(folder: WorkFolder, work: Work, rank: int) -> Outcome:
    import_uncollected("tasks.engine", "tasks.engine.training.training")
    exempt_from_collection()
    from tasks import engine
    from tasks.engine import workbench
    from tasks.launching.reports import Reporter

    model = workbench.take(work.injected)
    group = _join(work, rank)
    on_progress = on_evaluating = on_reference = None
    if rank == 0:
        reporter = Reporter(folder.reports)
        logging.getLogger("tasks").addHandler(reporter)
        on_progress, on_evaluating = reporter.on_progress, reporter.on_evaluating
        on_reference = reporter.on_reference
    try:
        trained = engine.train_adapter(
            model,
            work.injected,
            work.data,
            work.settings,
            work.checkpoints,
            on_progress,
            on_evaluating=on_evaluating,
            on_reference=on_reference,
            should_stop=folder.stop.exists,
            group=group,
            max_eval_rows=work.max_eval_rows,
        )
    except StoppedError as stopped:
        return Outcome(stopped=str(stopped))
    return Outcome(
        trained=trained,
        peak_memory_bytes=tuple(group.gather(peak_memory_bytes())),
        peak_gpu_bytes=tuple(group.gather(peak_gpu_bytes())),
    )


def _join(work: Work, rank: int) -> "Group":
    """Meet the other processes; return what to reach them by.

    Raises:
        LostPeerError: one of them ended meanwhile.
    """
    from torch import distributed

    from tasks.engine.base import device
    from tasks.engine.training import ProcessGroup, meeting

    store = distributed.FileStore(str(work.meeting_point), work.size)  # type: ignore[attr-defined]
    with meeting():
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=work.size)
        on_gpus = distributed.new_group(backend="nccl") if device().type == "cuda" else None
    return ProcessGroup(on_gpus)


if __name__ == "__main__":
    status = main(WorkFolder(Path(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    # No interpreter's end: threads of torch and of a lost group may hold it up.
    os._exit(status)
