"""Prefect's log of a run: the engine's lines, and a user's mistake without a traceback."""

import logging

from tasks.errors import UserError


def _shorten_mistakes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args = str(error), ()
        record.exc_info = record.exc_text = None
    return True


def prepare_run_log() -> None:
    """Let in what the engine tells, and take the traceback off a user's mistake.

    Prefect sends the lines of `PREFECT_LOGGING_EXTRA_LOGGERS`, but leaves their loggers at the
    root's level, by which only warnings get that far.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        log = logging.getLogger(name)
        log.removeFilter(_shorten_mistakes)
        log.addFilter(_shorten_mistakes)
