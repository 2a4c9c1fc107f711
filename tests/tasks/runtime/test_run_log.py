"""What Prefect's log of a run lets through."""

import logging
from collections.abc import Iterator
from copy import copy

import pytest

from tasks.errors import UserError
from tasks.runtime.run_log import prepare_run_log


@pytest.fixture(autouse=True)
def _own_level() -> Iterator[None]:
    """Leave the level of our loggers as it was."""
    ours = logging.getLogger("tasks")
    before = ours.level
    ours.setLevel(logging.NOTSET)
    yield
    ours.setLevel(before)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """Collect what reaches the handlers that Prefect puts on its loggers and ours."""
    found: list[logging.LogRecord] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(copy(record))

    handler = Collecting()
    loggers = [logging.getLogger(name) for name in ("tasks", "prefect.task_runs")]
    for one in loggers:
        # In front: Prefect's own take the traceback off once they have shown it.
        one.handlers.insert(0, handler)
    yield found
    for one in loggers:
        one.removeHandler(handler)


def test_the_engine_s_own_lines_get_through(lines: list[logging.LogRecord]) -> None:
    """What takes minutes, such as a conversion, is logged as progress, not only as a warning."""
    engine = logging.getLogger("tasks.engine.base.gguf_conversion")
    engine.info("before")
    prepare_run_log()
    engine.info("converting %s", "it")
    assert [line.getMessage() for line in lines] == ["converting it"]


@pytest.mark.parametrize(
    ("error", "message", "is_traced"),
    [(UserError("no such file"), "no such file", False), (KeyError("x"), "it failed", True)],
)
def test_only_a_mistake_loses_its_traceback(
    lines: list[logging.LogRecord], error: Exception, *, message: str, is_traced: bool
) -> None:
    """A user's mistake is its own message; any other error keeps where it came from."""
    for _ in range(2):  # each flow of a process prepares the log
        prepare_run_log()
    try:
        raise error
    except (UserError, KeyError):
        logging.getLogger("prefect.task_runs").exception("it failed")
    assert [line.getMessage() for line in lines] == [message]
    assert (lines[0].exc_info is not None) == is_traced
