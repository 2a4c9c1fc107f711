"""The processes of a group, as torch's elastic launcher starts and watches them.

This is the part of the launcher that its agent is built on. The agent itself adds a rendezvous of
machines and restarts, takes the process's signal handlers, and gives the peers of a process that
died 30 seconds to notice.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SubprocessContext

from tasks.launching.work import WorkFolder

_SECONDS_FOR_PEERS = 5
"""One that waits in a collective hears no signal."""
_TAKES_SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
# It reports each process that it ends, beside our one message.
logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


class Ranks(SubprocessContext):
    """The processes, by their ranks.

    Args:
        folder: has their work.
        environments: the variables of each process, by its rank.
    """

    def __init__(self, folder: WorkFolder, environments: Mapping[int, Mapping[str, str]]) -> None:
        command = ("-m", "tasks.launching.rank", str(folder.folder))
        super().__init__(
            "training",
            sys.executable,
            {rank: (*command, str(rank)) for rank in environments},
            {rank: dict(one) for rank, one in environments.items()},
            _Logs(folder),
        )
        self.died_first: set[int] | None = None
        """The processes that had failed when the others were ended; None before."""

    def start(self) -> None:
        """Start the processes, and leave this process its signal handlers."""
        stand_in = signal.SIGUSR2  # torch handles some signal, or warns
        with _variable(_TAKES_SIGNALS, stand_in.name):
            before = signal.getsignal(stand_in)
            super().start()
            signal.signal(stand_in, before)

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:  # noqa: ARG002 - torch's own
        """End those that still run, after some seconds by SIGKILL."""
        if self.died_first is None:
            statuses = {rank: one.proc.poll() for rank, one in self.subprocess_handlers.items()}
            self.died_first = {rank for rank, status in statuses.items() if status}
        super().close(death_sig, _SECONDS_FOR_PEERS)

    def kill(self) -> None:
        """End all of them at once."""
        self.close(signal.SIGKILL)


class _Logs(LogsSpecs):
    """A file for each process."""

    def __init__(self, folder: WorkFolder) -> None:
        super().__init__()
        self._folder = folder

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        logs = {rank: str(self._folder.log(rank)) for rank in envs}
        return LogsDest(
            stdouts=dict.fromkeys(envs, ""),  # which the process sends to its log
            stderrs=logs,
            error_files={rank: str(self._folder.failure(rank)) for rank in envs},
        )

    @property
    def root_log_dir(self) -> str:
        return str(self._folder.folder)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
