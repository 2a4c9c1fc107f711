"""Download adapters from MLflow: from the registry, a logged model, or a run."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.config import TrackingSettings
from tasks.errors import PassingError, UserError
from tasks.tracking.offline import outages
from tasks.tracking.store import connecting_uri, database_file, tracking_uri

_URI = re.compile(r"(models|runs):/+")


def is_mlflow_uri(source: str) -> bool:
    """Return whether a source is an MLflow URI, and not a folder or a Hub id."""
    return bool(_URI.match(source))


@contextmanager
def fetched_adapter(uri: str, tracking: TrackingSettings) -> Iterator[Path]:
    """Download an adapter, and yield its folder, which is removed after the block.

    Args:
        uri: `models:/name@alias`, `models:/name/version`, `models:/m-…`, or
            `runs:/RUN_ID/artifact or model`.
        tracking: which MLflow store.

    Raises:
        UserError: MLflow has nothing there, or not exactly one adapter.
        PassingError: the server can't be reached.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    store = tracking_uri(tracking)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with default_store(connecting_uri(store)):
                fetched = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
        except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
            reason = f"{uri} can't be downloaded from MLflow: {outages.reason(error)}"
            if outages.is_passing(error) and not database_file(store):
                raise PassingError(reason) from error
            raise UserError(reason) from error
        yield _only_adapter(uri, fetched)


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Make this mlflow's default store in the block.

    mlflow 3.17 looks up `models:/m-…` in its default store, even if the call names another one.
    """
    import mlflow

    # mlflow 3.17 sets these variables, too, and leaves the second one set.
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _only_adapter(uri: str, fetched: Path) -> Path:
    found = sorted(config.parent for config in fetched.rglob("adapter_config.json"))
    if len(found) != 1:
        has = ", ".join(str(path.relative_to(fetched)) for path in found) or "none"
        raise UserError(f"{uri} must contain exactly one adapter; it contains {has}")
    return found[0]
