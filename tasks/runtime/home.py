"""The home folder, which everything is written to: the checkout, or `ADAPTERFLOW_HOME`.

All paths are absolute, so that nothing depends on the working directory.
"""

import os
from pathlib import Path

from tasks.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


def home() -> Path:
    """Return the absolute path of the home folder."""
    return Path(os.environ.get("ADAPTERFLOW_HOME") or CHECKOUT).expanduser().resolve()


def check() -> None:
    """Check that the home folder exists or can be created.

    Raises:
        UserError: it is a file, or can't be created.
    """
    place = home()
    found = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not found.is_dir():
        raise UserError(f"ADAPTERFLOW_HOME is {place}, but {found} is a file; name a folder")
    if found != place and not os.access(found, os.W_OK):
        raise UserError(
            f"ADAPTERFLOW_HOME is {place}, which can't be created in {found}; name a folder that "
            "you have write permission for"
        )


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
