"""Processes that outlive the command that starts them, and that a later command finds and stops.

Each carries a mark in its environment, which its children inherit. So a process id that the system
has reused for another program is never mistaken for one of them, even if the clock was changed,
and children are found whose parent died.
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

from tasks.engine.reading import Rule, check_fields, is_integer, json_object
from tasks.errors import AdapterflowError
from tasks.runtime import home
from tasks.runtime.atomic_files import write_atomically

_SECONDS_TO_START = 240.0
_SECONDS_TO_STOP_CHILDREN = 60.0
_SECONDS_TO_STOP = 8.0
_SECONDS_TO_KILL = 5.0
_MARK = "ADAPTERFLOW_STARTED_AS"
_PROCESS: Rule = (
    lambda one: isinstance(one, dict) and is_integer(one.get("pid")) and "port" in one,
    "an object with pid and port; remove the file",
)


class Background:
    """The background processes of a folder: `stack.json` lists them, beside their logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / home.STACK_FILE

    def start(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], port: int | None
    ) -> None:
        """Start a Python module with its arguments, and list it under a name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *words],
                env={**os.environ, **environment, _MARK: self._mark(name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
            )
        noted = {**self._noted(), name: {"pid": process.pid, "port": port}}
        write_atomically(self._file, json.dumps(noted))

    def wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a process is ready.

        Raises:
            AdapterflowError: it exited, or was not ready in time.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        looks_dead = False
        while not is_ready():
            # During exec a process has no environment for a moment: one check may miss the mark.
            looked_dead, looks_dead = looks_dead, name not in self.ports()
            if (looked_dead and looks_dead) or time.monotonic() > deadline:
                raise AdapterflowError(f"{name} did not start; see {self.log(name)}")
            time.sleep(0.2)

    def ports(self) -> dict[str, int | None]:
        """Return the port of each running process, None for one that listens on none."""
        return {
            name: one["port"]
            for name, one in self._noted().items()
            if one["pid"] in {process.pid for process in self._marked(name)}
        }

    def stop(self, names: Sequence[str]) -> list[str]:
        """Stop these processes and their descendants, in this order; return the running ones."""
        running = [name for name in names if self._marked(name)]
        for name in running:
            self._stop(name)
        return running

    def log(self, name: str) -> Path:
        """Return the file that a process writes its output to."""
        return self._folder / f"{name}.log"

    def _noted(self) -> dict[str, dict[str, int | None]]:
        noted = json_object(self._file) if self._file.exists() else {}
        for name, one in noted.items():
            check_fields({name: one}, {name: _PROCESS}, str(self._file))
        return noted

    def _mark(self, name: str) -> str:
        return f"{name} of {self._folder}"

    def _marked(self, name: str) -> list[psutil.Process]:
        """Return the running processes that were started under a name, with their descendants."""
        return [one for one in psutil.process_iter() if _has(one, self._mark(name))]

    def _stop(self, name: str) -> None:
        tree = self._marked(name)
        noted = self._noted().get(name, {}).get("pid")
        _signal(tree, psutil.Process.terminate)
        # A training writes a checkpoint before it exits.
        _wait_for([one for one in tree if one.pid != noted], _SECONDS_TO_STOP_CHILDREN)
        # Prefect 3.8's worker may wait forever after SIGTERM, even without runs.
        _wait_for(tree, _SECONDS_TO_STOP)
        tree = self._marked(name)
        _signal(tree, psutil.Process.kill)
        _wait_for(tree, _SECONDS_TO_KILL)


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark and _is_running(process)
    except (psutil.Error, OSError):  # another user's, or it has just exited
        return False


def _signal(tree: Sequence[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in filter(_is_running, tree):
        with suppress(psutil.NoSuchProcess):  # it has just exited
            send(process)


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_running(process: psutil.Process) -> bool:
    try:
        # psutil compares creation times, so a reused process id does not count as running.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
