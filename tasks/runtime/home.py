"""Where adapterflow keeps what it writes: the checkout, or the folder `ADAPTERFLOW_HOME` names.

Every path here is absolute, so that nothing depends on the working directory.
"""

import os
from pathlib import Path

from tasks.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


def home() -> Path:
    """Give the absolute folder that holds the store, the cache and the outputs."""
    return Path(os.environ.get("ADAPTERFLOW_HOME") or CHECKOUT).expanduser().resolve()


def check() -> None:
    """Check that the home is a folder, or can be made one.

    Raises:
        UserError: neither is so.
    """
    place = home()
    found = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not found.is_dir():
        raise UserError(f"ADAPTERFLOW_HOME is {place}, but {found} is a file; name a folder")
    if found != place and not os.access(found, os.W_OK):
        raise UserError(
            f"ADAPTERFLOW_HOME is {place}, which can't be made in {found}; name a folder that you "
            "may write to"
        )


def mlflow_store() -> Path:
    """Give the folder of the embedded MLflow store: its database and its artifacts."""
    return home() / "mlruns"


def prefect_store() -> Path:
    """Give the folder of the embedded Prefect server's database and of the persisted results."""
    return home() / ".prefect"


def cache() -> Path:
    """Give the folder of base models that were converted once."""
    return home() / ".cache"


def outputs() -> Path:
    """Give the folder under which each flow run writes its own."""
    return home() / "outputs"
