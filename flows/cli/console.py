"""What a terminal shows of a run: our own lines, and of the libraries what is a warning."""

import logging
import sys
import warnings

# Libraries that warn about themselves, not about the run.
_CHATTY = ("bitsandbytes", "transformers", "httpx", "alembic", "mlflow")


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notes out of the way."""
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # While its server is away Prefect prints each event that it could not send, whole.
    logging.getLogger("prefect._internal.concurrency").setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()  # downloads take minutes; the line above switched them off, too


def show_our_lines() -> None:
    """Show the steps' lines, without what Prefect says of its own bookkeeping."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
    logging.captureWarnings(capture=True)
    logging.getLogger("tasks").setLevel(logging.INFO)
    formatter = _StepFormatter("%(asctime)s  %(step)-16s  %(mark)s%(message)s", "%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_worth_showing)
        handler.setFormatter(formatter)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if "/prefect/" not in record.pathname:
        return True
    # How a task or the run ended is said by the summary or the error at the end.
    return record.levelno >= logging.WARNING and "Finished in state" not in str(record.msg)


class _StepFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.step = getattr(record, "task_run_name", None) or ""
        record.mark = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        # A traceback is in Prefect's log of the run; here it would bury the message.
        record.exc_info = record.exc_text = None
        return super().format(record)
