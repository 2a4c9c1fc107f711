"""Processes that outlive the command that starts them, and that a later command finds and ends.

Each carries a mark in its environment, and what it starts inherits that. So a process id that the
system gave to another program since is none of them, whatever was done to the clock, and children
are found whose parent died.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.errors import AdapterflowError
from tasks.runtime.atomic_files import write_atomically

_SECONDS_TO_START = 240.0
_SECONDS_TO_END = 60.0
_SECONDS_TO_END_ALONE = 8.0
_SECONDS_TO_KILL = 5.0
_MARK = "ADAPTERFLOW_STARTED_AS"


class Background:
    """The processes noted in a folder, each with its log beside the note."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "stack.json"

    def start(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], port: int | None
    ) -> None:
        """Start a Python module with its arguments, and note it under a name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *words],
                env={**os.environ, **environment, _MARK: self._mark(name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is not meant for it
            )
        noted = {**self._noted(), name: {"pid": process.pid, "port": port}}
        write_atomically(self._file, json.dumps(noted))

    def wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a process is ready.

        Raises:
            AdapterflowError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        looks_dead = False
        while not is_ready():
            # A process that becomes another program has no environment for a moment.
            looked_dead, looks_dead = looks_dead, name not in self.ports()
            if (looked_dead and looks_dead) or time.monotonic() > deadline:
                raise AdapterflowError(f"{name} did not start; see {self.log(name)}")
            time.sleep(0.2)

    def ports(self) -> dict[str, int | None]:
        """Give the port of each process that lives, None for one that listens on none."""
        return {
            name: one["port"]
            for name, one in self._noted().items()
            if one["pid"] in {process.pid for process in self._marked(name)}
        }

    def end(self, names: Sequence[str]) -> list[str]:
        """End these processes and those that they started, in this order; give whose lived."""
        ended = [name for name in names if self._marked(name)]
        for name in ended:
            self._end(name)
        return ended

    def log(self, name: str) -> Path:
        """Give the file that a process writes to."""
        return self._folder / f"{name}.log"

    def _noted(self) -> dict[str, dict[str, int | None]]:
        noted: dict[str, dict[str, int | None]] = {}
        if self._file.exists():
            noted = json.loads(self._file.read_text())
        return noted

    def _mark(self, name: str) -> str:
        return f"{name} of {self._folder}"

    def _marked(self, name: str) -> list[psutil.Process]:
        """Give the living processes that were started under a name, here or by one that was."""
        return [one for one in psutil.process_iter() if _has(one, self._mark(name))]

    def _end(self, name: str) -> None:
        tree = self._marked(name)
        noted = self._noted().get(name, {}).get("pid")
        _signal(tree, psutil.Process.terminate)
        # A training that is ended keeps a checkpoint first.
        _wait_for([one for one in tree if one.pid != noted], _SECONDS_TO_END)
        # Prefect 3.8's worker waits for ever, also without runs.
        _wait_for(tree, _SECONDS_TO_END_ALONE)
        tree = self._marked(name)
        _signal(tree, psutil.Process.kill)
        _wait_for(tree, _SECONDS_TO_KILL)


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark and _lives(process)
    except (psutil.Error, OSError):  # of another user, or it ended in this moment
        return False


def _signal(tree: Sequence[psutil.Process], end: Callable[[psutil.Process], None]) -> None:
    for process in filter(_lives, tree):
        with suppress(psutil.NoSuchProcess):  # it ended in this moment
            end(process)


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    try:
        # psutil compares the time of birth: a reused process id does not live.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
