"""The processes of a training on this machine, watched by the process of the flow."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.launching.processes import gpus
from tasks.launching.work import Failure, LocalWork, Work, WorkFolder, causes
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from tasks.launching.ranks import Ranks
    from tasks.launching.reports import Reports

_SECONDS_BETWEEN_LOOKS = 0.1


def run_here(
    folder: WorkFolder, work: Work, reports: "Reports", should_stop: Callable[[], bool]
) -> dict[int, Failure]:
    """Run the processes to their end; return the failure of each that failed by itself."""
    with tempfile.TemporaryDirectory() as meeting:
        local = LocalWork(**dict(work), parent=os.getpid(), meeting_point=Path(meeting) / "store")
        write_atomically(folder.work, local.model_dump_json())
        return _run(folder, work.size, reports, should_stop)


def _run(
    folder: WorkFolder, size: int, reports: "Reports", should_stop: Callable[[], bool]
) -> dict[int, Failure]:
    with _started(folder, size) as ranks:
        while (result := ranks.wait(0)) is None:
            reports.relay()
            if should_stop():
                folder.request_stop()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    reports.relay()
    return causes(
        {
            rank: folder.failure_of(rank) or death(one.exitcode, one.pid)
            for rank, one in result.failures.items()
            if rank in (ranks.died_first or ()) or folder.failure_of(rank)
        }
    )


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


def death(exit_code: int, pid: int) -> Failure:
    """Return what the exit code of a process says that left no failure."""
    if exit_code >= 0:
        return Failure(kind="", message=f"process {pid} exited with status {exit_code}")
    name = signal.Signals(-exit_code).name
    reason = ", as the kernel does where memory runs out" if -exit_code == signal.SIGKILL else ""
    return Failure(kind="", message=f"process {pid} was killed by {name}{reason}")
