"""The time left of a step, with a clock of the test's own."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tasks.runtime.progress import Bar, Lines, bars
from tasks.runtime.time_left import TimeLeft, time_left_text


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def worked(seconds: list[float], total: int, begun: int = 0) -> TimeLeft:
    """Return the estimate after units that took these seconds each."""
    clock = Clock()
    left = TimeLeft(clock)
    left.observe(begun, total)
    for number, took in enumerate(seconds, begun + 1):
        clock.now += took
        left.observe(number, total)
    return left


@given(st.floats(1e-4, 1e5), st.integers(1, 400), st.integers(0, 10_000), st.integers(0, 10_000))
def test_at_constant_speed_the_estimate_is_right(
    speed: float, num_done: int, begun: int, more: int
) -> None:
    """Within 20 % after the first unit and ever after, wherever a resumed run begins."""
    left = worked([speed] * num_done, begun + num_done + more, begun).seconds
    assert left == pytest.approx(speed * more, rel=0.2, abs=1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(0, 100), st.floats(0, 1e7))
def test_there_is_always_an_estimate_and_never_below_zero(
    seconds: list[float], more: int, waited: float
) -> None:
    """However slow or uneven the units are, and however long the next one takes."""
    clock = Clock()
    left = TimeLeft(clock)
    left.observe(0, len(seconds) + more)
    for number, took in enumerate(seconds, 1):
        clock.now += took
        left.observe(number, len(seconds) + more)
        assert left.seconds is not None
        assert left.seconds >= 0
        assert "left" in time_left_text(left.seconds)
    clock.now += waited
    assert left.seconds is not None
    assert left.seconds >= 0


def test_one_slow_step_does_not_multiply_the_estimate() -> None:
    """After five steps of 10 s and one of 10 min, 94 more take some 15 min and not two hours."""
    left = worked([10, 10, 10, 10, 10, 600], total=100).seconds
    assert left
    assert 94 * 10 <= left < 94 * 15


def test_the_estimate_follows_what_is_recent() -> None:
    """A device that is slower for hundreds of steps is taken at its new speed."""
    left = worked([1.0] * 500 + [4.0] * 300, total=1000).seconds
    assert left == pytest.approx(200 * 4, rel=0.1)


def test_what_an_earlier_attempt_did_is_not_taken_for_speed() -> None:
    """Kept chunks, before and between the others, cost nothing and promise nothing."""
    clock = Clock()
    shown = Lines("row", clock)
    shown.skip(500, 1000)
    assert shown.seconds_left is None
    for _ in range(2):
        clock.now += 10
        shown.add(100, 1000)
        shown.skip(100, 1000)
    assert shown.done == 900
    assert shown.seconds_left == pytest.approx(10)


def test_work_that_begins_anew_is_estimated_anew() -> None:
    """A training that restarts with smaller batches does not run backwards."""
    clock = Clock()
    left = TimeLeft(clock)
    for done in (0, 1, 2, 0):
        left.observe(done, 10)
        clock.now += 5
    assert left.seconds is None
    left.observe(1, 10)
    assert left.seconds == pytest.approx(45)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.2, "0 s left"),
        (48, "48 s left"),
        (59.9, "1 min left"),
        (12 * 60 + 20, "12 min left"),
        (3570, "1 h 00 min left"),
        (5 * 3600 + 300, "5 h 05 min left"),
        (3 * 86400, "3 days left"),
    ],
)
def test_the_time_left_reads_as_people_say_it(seconds: float | None, text: str) -> None:
    """Seconds, minutes, hours and days, in few words."""
    assert time_left_text(seconds) == text


def test_log_lines_have_it(caplog: pytest.LogCaptureFixture) -> None:
    """A line says how much is done, what is left, and the note."""
    clock = Clock()
    shown = Lines("training step", clock)
    shown.at(500, 1000)
    with caplog.at_level(logging.INFO, "tasks"):
        clock.now += 60
        shown.at(501, 1000, "loss 1.2")
    assert caplog.messages == ["training step 501 of 1000  8 h 19 min left  loss 1.2"]


def test_a_bar_has_it_after_a_step_of_an_hour() -> None:
    """The terminal shows the time left where rich's own column shows none."""
    clock, terminal = Clock(), io.StringIO()
    with bars(Console(file=terminal, width=100, force_terminal=True)) as shown:
        bar = Bar("training step", shown, clock)
        bar.at(0, 5)
        clock.now += 3600
        bar.at(1, 5)
    assert "4 h 00 min left" in terminal.getvalue()
    assert "-:--:--" not in terminal.getvalue()
