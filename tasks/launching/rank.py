"""A process of a group that trains one adapter: `python -m tasks.launching.rank FOLDER RANK`.

It loads the base, adds the adapter and trains its share of the rows, all from the record in the
folder. It ends with the process that started it, whatever that ends by, and hears no signal itself:
a machine that shuts down sends SIGTERM to all.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.launching.work import LocalWork, WorkFolder
from tasks.runtime.libraries import exempt_from_collection, import_uncollected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.training import Group

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_SECONDS_BETWEEN_LOOKS = 1.0


def main(folder: WorkFolder, rank: int) -> int:
    """Train; return the exit status. What failed is in the folder, and in the log."""
    os.dup2(2, 1)  # what libraries print goes to the log, too
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        work = LocalWork.model_validate_json(folder.work.read_bytes())
        _end_with(work.parent)
        _train(folder, work, rank)
    except BaseException as error:  # noqa: BLE001 - it is reported, whatever it is
        traceback.print_exc()
        folder.leave_failure(rank, error)
        return 1
    return 0


def _train(folder: WorkFolder, work: LocalWork, rank: int) -> None:
    import_uncollected("tasks.engine", "tasks.engine.training.training")
    exempt_from_collection()
    from tasks.engine import workbench
    from tasks.engine.base import bases_on_host
    from tasks.launching.share import train_share

    with bases_on_host(needed=work.shards):
        model = workbench.take(work.injected)
    train_share(folder, work, model, _join(work, rank, model))


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


def _join(work: LocalWork, rank: int, model: "PreTrainedModel") -> "Group":
    """Meet the other processes, and share the base with them if it is to be; return the group.

    Raises:
        LostPeerError: one of them ended meanwhile.
    """
    from torch import distributed

    from tasks.engine.base import device
    from tasks.engine.training import ProcessGroup, ShardingGroup, meeting

    store = distributed.FileStore(str(work.meeting_point), work.size)  # type: ignore[attr-defined]
    with meeting():
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=work.size)
        on_gpus = distributed.new_group(backend="nccl") if device().type == "cuda" else None
    return ShardingGroup(model, on_gpus) if work.shards else ProcessGroup(on_gpus)


if __name__ == "__main__":
    status = main(WorkFolder(Path(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    # No interpreter's end: threads of torch and of a lost group may hold it up.
    os._exit(status)
