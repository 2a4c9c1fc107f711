"""What a process reports arrives once; what earlier attempts logged is passed on again."""

import logging
from pathlib import Path

import pytest

from tasks.engine.training import TrainingProgress
from tasks.launching.reports import Reporter, Reports


def test_an_attempt_gets_its_own_reports_and_what_was_logged_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that a kill cut off is passed over; so are warnings and evaluations of the past."""
    file = tmp_path / "reports.jsonl"
    first = Reporter(file)
    first.on_progress(TrainingProgress(1, 4, {}))
    first.on_progress(TrainingProgress(1, 4, {"loss": 2.5}))
    first.emit(logging.LogRecord("tasks", logging.WARNING, "", 0, "out of memory", (), None))
    with file.open("a") as cut:
        cut.write('["step", 2, 4, {"lo')

    steps: list[TrainingProgress] = []
    evaluated: list[tuple[int, int]] = []
    reports = Reports(file, steps.append, lambda done, total: evaluated.append((done, total)), None)
    earlier: list[TrainingProgress] = []
    reports.repeat(earlier.append)
    reports.relay()
    assert earlier == [TrainingProgress(1, 4, {"loss": 2.5})]
    assert steps == []

    second = Reporter(file)
    second.on_progress(TrainingProgress(2, 4, {"loss": 2.0}))
    second.on_evaluating(3, 5)
    second.emit(logging.LogRecord("tasks", logging.WARNING, "", 0, "padded %s", ("rows",), None))
    reports.relay()
    assert steps == [TrainingProgress(2, 4, {"loss": 2.0})]
    assert evaluated == [(3, 5)]
    assert caplog.messages == ["padded rows"]


def test_there_may_be_no_report_yet(tmp_path: Path) -> None:
    """As before the first process has loaded the base."""
    Reports(tmp_path / "reports.jsonl", print, None, None).relay()
