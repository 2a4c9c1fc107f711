"""Set up Prefect's log of a run: with the engine's lines, and without tracebacks of UserErrors."""

import logging

from tasks.errors import LONGEST_MESSAGE, UserError, shortened


def _shorten(record: logging.LogRecord) -> bool:
    """Replace a UserError's traceback by its message, and shorten a long message."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args = str(error), ()
        record.exc_info = record.exc_text = None
    if len(message := record.getMessage()) > LONGEST_MESSAGE:
        record.msg, record.args = shortened(message), ()
    return True


def prepare_run_log() -> None:
    """Log the engine's INFO lines, remove the traceback of a UserError, and shorten long lines.

    Prefect 3.8 sends the lines of `PREFECT_LOGGING_EXTRA_LOGGERS`, but leaves their loggers at the
    root's level, WARNING.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        log = logging.getLogger(name)
        log.removeFilter(_shorten)
        log.addFilter(_shorten)
