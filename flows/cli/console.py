"""What a terminal shows of a run: our own log lines, and only the warnings of libraries."""

import logging
import os
import sys
import warnings

from tasks.errors import shortened
from tasks.runtime.libraries import exempt_from_collection, import_uncollected

# Libraries whose warnings are about themselves rather than the run: only their errors are shown.
_CHATTY = ("bitsandbytes", "transformers", "httpx", "alembic", "mlflow")


def quiet_libraries() -> None:
    """Hide the libraries' progress bars, and what they log below an error."""
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Of PEFT 0.21, wherever a second adapter is loaded on a base.
    warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
    # PEFT 0.21 only looks for modules, and takes patterns for experts' parameters for idle ones.
    warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys did not match")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # While its server is away, Prefect 3.8 prints the complete payload of each unsent event here.
    logging.getLogger("prefect._internal.concurrency").setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()  # the line above hid the Hub's as well; downloads take minutes


def show_steps() -> None:
    """Show the engine's log lines on stderr, and only the warnings of libraries.

    Unlike `flows.cli.process.show_progress`, this imports no Prefect: it is for commands that run
    no flow.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    import_uncollected("tasks.engine", "peft")
    exempt_from_collection()
    quiet_libraries()
    handler = logging.StreamHandler()
    handler.setFormatter(ShortFormatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("tasks").setLevel(logging.INFO)


def show_our_lines() -> None:
    """Show the log lines of the steps, without Prefect's own about states and runs."""
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
    # The last lines printed are the summary or the error: the final state would repeat them.
    return record.levelno >= logging.WARNING and "Finished in state" not in str(record.msg)


class ShortFormatter(logging.Formatter):
    """Shortens lines, which may repeat what a user gave, and leaves out tracebacks.

    They are in Prefect's log of the run, if there is one; here they would bury the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.exc_info = record.exc_text = None
        return shortened(super().format(record))


class _StepFormatter(ShortFormatter):
    def format(self, record: logging.LogRecord) -> str:
        record.step = getattr(record, "task_run_name", None) or ""
        record.mark = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return super().format(record)
