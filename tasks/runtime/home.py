"""The home folder, which everything is written to: the checkout, or `ADAPTERFLOW_HOME`.

All paths are absolute, so that nothing depends on the working directory.
"""

import os
from pathlib import Path

from tasks.runtime.paths import check_folder, check_path

CHECKOUT = Path(__file__).resolve().parents[2]
STACK_FILE = "stack.json"
"""In `prefect_store`: which servers `adapterflow up` has started."""

_VARIABLE = "ADAPTERFLOW_HOME"


def home() -> Path:
    """Return the absolute path of the home folder.

    Raises:
        UserError: no folder can have this path.
    """
    given = os.environ.get(_VARIABLE) or str(CHECKOUT)
    check_path(given, _VARIABLE)
    return Path(given).expanduser().resolve()


def check() -> None:
    """Check that the home folder exists or can be created.

    Raises:
        UserError: it is a file, or can't be created.
    """
    if not home().is_dir():
        check_writable()


def check_writable() -> None:
    """Check that files can be written to the home folder.

    Raises:
        UserError: it is a file, or can't be created or written to.
        UnwritableError: the disk is full.
    """
    check_folder(home(), _VARIABLE)


def mlflow_store() -> Path:
    """Return the folder of the embedded MLflow store: its database and its artifacts."""
    return home() / "mlruns"


def prefect_store() -> Path:
    """Return the folder of the embedded Prefect server's database and of persisted results."""
    return home() / ".prefect"


def cache() -> Path:
    """Return the folder of converted base models."""
    return home() / ".cache"


def outputs() -> Path:
    """Return the default folder of the run folders."""
    return home() / "outputs"
