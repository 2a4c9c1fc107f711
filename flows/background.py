"""Processes that outlive the command that starts them, and that a later command finds and ends.

A file says which they are, by process id and time of birth: a process id that the system gave to
another program since is none of them.
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

_SECONDS_TO_START = 240.0
_SECONDS_TO_END = 60.0
_SECONDS_TO_END_ALONE = 8.0
_SECONDS_TO_KILL = 5.0


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
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is not meant for it
            )
        born = psutil.Process(process.pid).create_time()
        noted = {**self._noted(), name: {"pid": process.pid, "born": born, "port": port}}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(noted))
        new.replace(self._file)

    def wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a process is ready.

        Raises:
            AdapterflowError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        while not is_ready():
            if name not in self.ports() or time.monotonic() > deadline:
                raise AdapterflowError(f"{name} did not start; see {self.log(name)}")
            time.sleep(0.2)

    def ports(self) -> dict[str, int | None]:
        """Give the port of each process that lives, None for one that listens on none."""
        return {name: self._noted()[name]["port"] for name in self._living()}

    def end(self, names: Sequence[str]) -> list[str]:
        """End these processes and those that they started, in this order; give who lived."""
        living = self._living()
        ended = [name for name in names if name in living]
        for name in ended:
            _end_tree(living[name])
        return ended

    def log(self, name: str) -> Path:
        """Give the file that a process writes to."""
        return self._folder / f"{name}.log"

    def _noted(self) -> dict[str, dict[str, int | None]]:
        noted: dict[str, dict[str, int | None]] = {}
        if self._file.exists():
            noted = json.loads(self._file.read_text())
        return noted

    def _living(self) -> dict[str, psutil.Process]:
        found = {}
        for name, one in self._noted().items():
            try:
                process = psutil.Process(one["pid"])
                if process.create_time() == one["born"] and _lives(process):
                    found[name] = process
            except psutil.NoSuchProcess:
                continue
        return found


def _end_tree(root: psutil.Process) -> None:
    children = root.children(recursive=True)
    tree = [*children, root]
    _signal(tree, psutil.Process.terminate)
    # A training that is ended keeps a checkpoint first.
    _wait_for(children, _SECONDS_TO_END)
    # Prefect 3.8's worker waits for ever, also without runs.
    _wait_for([root], _SECONDS_TO_END_ALONE)
    _signal(tree, psutil.Process.kill)
    _wait_for(tree, _SECONDS_TO_KILL)


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
