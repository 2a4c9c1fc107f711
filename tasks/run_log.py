"""Prefect's log of a run: a user's mistake is one line there, without a traceback."""

import logging

from tasks.errors import UserError


def _shorten_mistakes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args = str(error), ()
        record.exc_info = record.exc_text = None
    return True


def shorten_mistakes() -> None:
    """Take the traceback off a user's mistake, on the terminal and in Prefect's UI alike."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        log = logging.getLogger(name)
        log.removeFilter(_shorten_mistakes)
        log.addFilter(_shorten_mistakes)
