"""Estimate how long work takes that is done in units, from its recent speed."""

import sys
import time
from collections import deque
from collections.abc import Callable

_KEPT = 200
"""Observations: enough to average over steps of different length and the evaluations in between."""
_SECONDS_BETWEEN_KEPT = 1.0
"""Thousands of rows a second would otherwise leave a window of milliseconds."""
_SLOWEST_LAST = 3.0
"""How much slower than the average before it the last interval counts, until another follows."""


class TimeLeft:
    """The seconds until some work is done.

    The speed is the average between the first and the last of the observations kept. Thus a slow
    step has its share only, and work that another process did is not counted.

    Args:
        clock: returns the time in seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._total = 0.0

    def observe(self, done: float, total: float) -> None:
        """Note that `done` of `total` units are done now.

        The first observation is where the work starts, whatever is done by then. So is one with
        fewer units done than the last, as when training starts over with smaller batches.
        """
        now, self._total = self._clock(), total
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        if self._seen and done == self._seen[-1][1]:
            return  # a second report of the same step
        # The first observation is never replaced: it is where the work started.
        if len(self._seen) > 1 and now - self._seen[-2][0] < _SECONDS_BETWEEN_KEPT:
            self._seen.pop()
        self._seen.append((now, done))

    def skip(self, count: float) -> None:
        """Note that `count` units need no work, as an earlier attempt did them."""
        self._seen = deque(((at, done + count) for at, done in self._seen), maxlen=_KEPT)

    @property
    def seconds(self) -> float | None:
        """The seconds left; None before the second observation."""
        if len(self._seen) <= 1:
            return None
        at, done = self._seen[-1]
        left = (self._total - done) * self._seconds_per_unit() - (self._clock() - at)
        return max(left, 0.0)

    @property
    def speed(self) -> float | None:
        """The units a second; None before the second observation."""
        if len(self._seen) <= 1:
            return None
        return 1 / max(self._seconds_per_unit(), sys.float_info.epsilon)

    def _seconds_per_unit(self) -> float:
        """Return the average of the window, in which the last interval counts within bounds.

        An evaluation or a checkpoint of minutes would otherwise multiply the estimate for a while.
        """
        (first, done_first), (before, done_before), (last, done) = (
            self._seen[0],
            self._seen[-2],
            self._seen[-1],
        )
        seconds = last - before
        if before > first:
            usual = (before - first) / (done_before - done_first)
            seconds = min(seconds, _SLOWEST_LAST * usual * (done - done_before))
        return (before - first + seconds) / (done - done_first)


def time_left_text(seconds: float | None) -> str:
    """Return the time left as people say it, such as `12 min left`; nothing if it is unknown."""
    if seconds is None:
        return ""
    if round(seconds) < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    if minutes < 60:  # noqa: PLR2004 - an hour
        return f"{minutes} min left"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004 - two days
        return f"{hours} h {minutes:02} min left"
    return f"{round(hours / 24)} days left"
