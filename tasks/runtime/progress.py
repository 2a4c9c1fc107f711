"""Show a step's progress: a bar on a terminal, log lines elsewhere.

The lines go to Prefect's log of the run, which its UI shows.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Prefect's log handler never blocks a training, even while the server is unreachable; updating a
# progress artifact would.
_SECONDS_BETWEEN_LINES = 5.0


def logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """Return the logger of the current run; outside of a run, the logger `adapterflow`."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("adapterflow")


class Progress:
    """The progress of some work, counted in units such as `row`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = 0

    def at(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units are done, with an optional note."""
        raise NotImplementedError

    def add(self, count: int, total: int) -> None:
        """Show that `count` more units are done."""
        self.done += count
        self.at(self.done, total)


class _Bar(Progress):
    def __init__(self, what: str, bar: Any) -> None:  # noqa: ANN401 - rich's Progress
        super().__init__(what)
        self._bar = bar
        self._task = bar.add_task(what, total=None, note="")

    def at(self, done: int, total: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, note=note)


class _Lines(Progress):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self._last = time.monotonic()

    def at(self, done: int, total: int, note: str = "") -> None:
        # No line for the end: the step itself logs the result.
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        logger().info("%s %d of %d  %s", self.what, done, total, note)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show progress while the block runs."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(what, bar)
