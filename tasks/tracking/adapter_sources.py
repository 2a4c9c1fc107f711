"""Adapters in MLflow: which one an address means now, and its download."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.config import TrackingSettings
from tasks.errors import PassingError, UserError
from tasks.records import LearnedRows
from tasks.tracking.offline import outages
from tasks.tracking.store import connecting_uri, database_file, store_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_URI = re.compile(r"(models|runs):/+")
_OF_RUN = re.compile(r"runs:/+(?P<run>[^/]+)(/.*)?")
_VERSION = re.compile(r"models:/+(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_LOGGED_MODEL = re.compile(r"models:/+(?P<id>m-[^/@]+)")
ROWS_SHA256, NUM_ROWS = "data/train/sha256", "data/train/num_rows"
"""Parameters of a run: the sha256 and the number of its training rows."""


class PinnedAdapter(NamedTuple):
    """What an address in MLflow means now."""

    uri: str
    """That always means the same adapter: of an alias, that of the version."""
    run_id: str | None
    """The run that made it; None if MLflow does not know."""
    learned: LearnedRows | None
    """The rows that this run trained on; None if it is not known."""


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

    store = tracking_uri(tracking)
    with tempfile.TemporaryDirectory() as folder:
        problem = f"{uri} can't be downloaded from MLflow"
        with _explained(store, problem), default_store(connecting_uri(store)):
            fetched = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
        yield _only_adapter(uri, fetched)


def pinned_adapter(uri: str, tracking: TrackingSettings) -> PinnedAdapter:
    """Return what an address in MLflow means now, and what the run that made it trained on.

    Args:
        uri: as for `fetched_adapter`.
        tracking: which MLflow store.

    Raises:
        UserError: MLflow has nothing there.
        PassingError: the server can't be reached.
    """
    store = tracking_uri(tracking)
    with _explained(store, f"{uri} can't be found in MLflow"):
        client = store_client(store)
        pinned, run_id = _pinned(client, uri)
        return PinnedAdapter(pinned, run_id, _learned(client, run_id) if run_id else None)


def text_of_run(run_id: str, file: str, tracking: TrackingSettings) -> str | None:
    """Return a text that a run logged; None if it did not.

    Args:
        run_id: of the run in MLflow.
        file: the artifact's path.
        tracking: which MLflow store.

    Raises:
        UserError: there is no such run.
        PassingError: the server can't be reached.
    """
    store = tracking_uri(tracking)
    with (
        _explained(store, f"{file} of the run {run_id} can't be read from MLflow"),
        tempfile.TemporaryDirectory() as folder,
    ):
        client = store_client(store)
        if file not in {one.path for one in client.list_artifacts(run_id)}:
            return None
        path = Path(client.download_artifacts(run_id, file, folder))
        return path.read_text(encoding="utf-8")


def _pinned(client: "MlflowClient", uri: str) -> tuple[str, str | None]:
    """Return an address that does not move, and the id of the run."""
    if found := _OF_RUN.fullmatch(uri):
        return uri, found["run"]
    if found := _LOGGED_MODEL.fullmatch(uri):
        return uri, client.get_logged_model(found["id"]).source_run_id or None
    if not (found := _VERSION.fullmatch(uri)):
        return uri, None
    name, alias = found["name"], found["alias"]
    version = (
        client.get_model_version_by_alias(name, alias)
        if alias
        else client.get_model_version(name, found["version"])
    )
    run_id = version.run_id or None
    if run_id is None and _LOGGED_MODEL.fullmatch(str(version.source)):
        _, run_id = _pinned(client, str(version.source))
    return f"models:/{name}/{version.version}", run_id


def _learned(client: "MlflowClient", run_id: str) -> LearnedRows | None:
    """Return the rows that a run trained on; None if it was deleted, or is of another program."""
    from mlflow.exceptions import MlflowException

    try:
        params = client.get_run(run_id).data.params
    except MlflowException as error:
        if outages.is_passing(error):
            raise
        return None
    if ROWS_SHA256 not in params:
        return None
    number = params.get(NUM_ROWS, "")
    num_rows = int(number) if number.isdecimal() else None
    return LearnedRows(sha256=params[ROWS_SHA256], num_rows=num_rows)


@contextmanager
def _explained(store: str, problem: str) -> Iterator[None]:
    """Raise the user's mistakes and outages as our errors, which begin with the problem."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = f"{problem}: {outages.reason(error)}"
        if outages.is_passing(error) and not database_file(store):
            raise PassingError(reason) from error
        raise UserError(reason) from error


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
