"""A process that trains variants one after the other, for the process that started it.

It reads the ids of flow runs from stdin, a line each, and writes `ended ID` to stdout after each.
It ends when stdin does, as when the other process was killed: an active run is stopped, and resumes
from its records later.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
import time
from typing import TextIO
from uuid import UUID

from tasks.runtime.libraries import import_uncollected

_SECONDS_TO_STOP = 5.0
"""Less than a resumed run waits for its lock."""
_SECONDS_TO_END = 15.0
"""For an idle process to send its last log lines."""
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


class _Inbox:
    """The lines of stdin, read by a thread, so that their end is seen during a training."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.is_busy = False
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str | None:
        """Wait for a line; None if there will be none."""
        return self._lines.get()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line.strip())
        self._lines.put(None)
        seconds = _SECONDS_TO_END
        if self.is_busy:
            os.kill(os.getpid(), signal.SIGTERM)
            seconds = _SECONDS_TO_STOP
        # Also where a library waits at its end, such as for a server that died.
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Execute the runs that stdin names."""
    _end_with_parent()
    messages = _own_stdout()
    inbox = _Inbox()
    import_uncollected("flows.variants.execution")
    from flows.variants.execution import executing

    with executing() as execute:
        while (line := inbox.next()) is not None:
            inbox.is_busy = True
            execute(UUID(line))
            inbox.is_busy = False
            print(f"ended {line}", file=messages, flush=True)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, even if another process has the pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _own_stdout() -> TextIO:
    """Keep stdout for messages, and send what libraries print to stderr."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return messages


if __name__ == "__main__":
    main()
