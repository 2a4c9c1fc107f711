"""Show a step's progress: a bar on a terminal, log lines elsewhere.

The lines go to Prefect's log of the run, which its UI shows.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.runtime.time_left import TimeLeft, time_left_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

Clock = Callable[[], float]

# Prefect's log handler never blocks a training, even while the server is unreachable; updating a
# progress artifact would.
_SECONDS_BETWEEN_LINES = 5.0


def logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """Return the logger of the current run; outside of a run, the logger `tasks`."""
    if "prefect" not in sys.modules:  # such as where the engine is used alone
        return logging.getLogger("tasks")
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("tasks")


class Progress:
    """The progress of some work, counted in units such as `row`.

    Args:
        what: the unit's name.
        clock: returns the time in seconds.
    """

    def __init__(self, what: str, clock: Clock = time.monotonic) -> None:
        self.what = what
        self.done = 0
        self._time_left = TimeLeft(clock)

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds until all units are done; None before two reports."""
        return self._time_left.seconds

    def at(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units are done, with an optional note.

        The time left is estimated from the speed since the first call: a call before the first
        unit, with what an earlier attempt had done, lets the first unit count.
        """
        self.done = done
        self._time_left.observe(done, total)
        self._show(total, note)

    def add(self, count: int, total: int) -> None:
        """Show that `count` more units are done."""
        self.at(self.done + count, total)

    def skip(self, count: int, total: int) -> None:
        """Show `count` more units as done that took no time, as an earlier attempt did them."""
        self._time_left.skip(count)
        self.at(self.done + count, total)

    def part(self, what: str) -> "Progress":
        """Return the progress of a part of this work, shown beside it while it lasts."""
        raise NotImplementedError

    def _show(self, total: int, note: str) -> None:
        raise NotImplementedError


class Bar(Progress):
    """Progress as a bar on a terminal."""

    def __init__(
        self,
        what: str,
        bars: "RichProgress",
        clock: Clock = time.monotonic,
        *,
        is_part: bool = False,
    ) -> None:
        super().__init__(what, clock)
        self._bars, self._clock, self._is_part = bars, clock, is_part
        self._task = bars.add_task(what, total=None, note="", bar=self, visible=not is_part)

    @property
    def time_left(self) -> str:
        """The time left, at each redraw: it goes down while a slow step runs."""
        return time_left_text(self.seconds_left)

    def part(self, what: str) -> Progress:
        """Return a bar below this one, which is hidden when its work is done."""
        return Bar(what, self._bars, self._clock, is_part=True)

    def _show(self, total: int, note: str) -> None:
        is_visible = not self._is_part or self.done < total
        self._bars.update(
            self._task, completed=self.done, total=total, note=note, visible=is_visible
        )


class Lines(Progress):
    """Progress as log lines, some seconds apart."""

    def __init__(self, what: str, clock: Clock = time.monotonic) -> None:
        super().__init__(what, clock)
        self._clock = clock
        self._last = clock()

    def part(self, what: str) -> Progress:
        """Return lines of their own."""
        return Lines(what, self._clock)

    def _show(self, total: int, note: str) -> None:
        # No line for the end: the step itself logs the result.
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        said = (f"{self.what} {self.done} of {total}", time_left_text(self.seconds_left), note)
        logger().info("%s", "  ".join(part for part in said if part))


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show progress while the block runs."""
    if not sys.stderr.isatty():
        yield Lines(what)
        return
    from rich.console import Console

    with bars(Console(stderr=True)) as shown:
        yield Bar(what, shown)


def bars(console: "Console") -> "RichProgress":
    """Return an empty display of bars, with our own estimate of the time left.

    Rich's is unknown after each step of more than 30 s.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bar].time_left}"),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )
