"""The MLflow store: a server, or the embedded store, which is created and migrated here.

The embedded store is an SQLite database beside a folder of artifacts. All its paths are absolute:
with relative ones, mlflow silently creates another store in each working directory.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tasks.config import TrackingSettings
from tasks.errors import UserError
from tasks.runtime import home
from tasks.runtime.addresses import has_host, masked
from tasks.runtime.atomic_files import writing
from tasks.runtime.paths import check_folder, check_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

POSSIBLE = (
    "possible are http(s)://… of an MLflow server, sqlite:////absolute/path.db and other database "
    "URIs, or no uri for the embedded store"
)
_LONGEST_FOLDER = 200
_WITH_DRIVER = ("postgresql", "mysql", "mssql")
"""The databases that MLflow uses through a package that is installed apart."""
_NUMBERS = tuple(
    f"MLFLOW_HTTP_REQUEST_{name}" for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR")
)
_SCHEMES = {"http", "https", "sqlite", *_WITH_DRIVER, "databricks", "databricks-uc", "uc"}


def tracking_uri(settings: TrackingSettings) -> str:
    """Return the tracking URI: the settings', or `MLFLOW_TRACKING_URI`, or the embedded store's.

    A relative SQLite path is relative to the home folder. A password in the variable is masked, as
    the URI is recorded and shown; `connecting_uri` returns it with the password.

    Raises:
        UserError: the URI is a folder of files, which mlflow 3.17 no longer writes; a database in
            memory, which other processes can't see; or a file that no system can have.
    """
    given = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return _embedded_uri()
    if given.startswith("sqlite"):
        return _absolute(given)
    if given.startswith("file:") or not re.match(r"[a-z][a-z0-9+-]*:|databricks", given):
        shown = masked(given)
        raise UserError(f"tracking uri {shown!r} is a folder of files; {POSSIBLE}")
    return masked(given)


def check_store(settings: TrackingSettings) -> str:
    """Return the tracking URI, checked as far as that is possible without a connection.

    Raises:
        UserError: as `tracking_uri`; a variable that must be a number is none; MLflow does not know
            the scheme; an SQLite database can't be written to; or the driver of another database is
            not installed.
        UnwritableError: the disk is full.
    """
    _check_numbers()
    uri = tracking_uri(settings)
    if file := database_file(uri):
        check_folder(file.parent, "the MLflow store's folder")
    scheme = uri.partition(":")[0].partition("+")[0]
    plugins = {one.name for one in entry_points(group="mlflow.tracking_store")}
    if scheme not in _SCHEMES | plugins:
        raise UserError(f"tracking uri {uri!r}: MLflow does not support {scheme}; {POSSIBLE}")
    if scheme in _WITH_DRIVER:
        _check_driver(uri)
    if scheme in {"http", "https"} and not has_host(uri):
        raise UserError(f"tracking uri {uri!r} names no server; {POSSIBLE}")
    return uri


def _check_numbers() -> None:
    """Check variables that MLflow only refuses once it is imported, which takes seconds."""
    for name in _NUMBERS:
        if (given := os.environ.get(name)) and not re.fullmatch(r"\s*\+?[0-9]{1,9}\s*", given):
            raise UserError(f"{name} is {given!r}; it must be an integer of 0 or more")


def _check_driver(uri: str) -> None:
    """Check that a database's address can be read, and that there is a package to connect with."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise UserError(
            f"MLflow at {uri} needs the Python package {error.name}, which is not "
            "installed; `pip install 'adapterflow[production]'` installs PostgreSQL's"
        ) from error
    except (ArgumentError, ValueError) as error:
        raise UserError(f"tracking uri {uri!r} can't be read: {error}; {POSSIBLE}") from error


def connecting_uri(uri: str) -> str:
    """Return a URI from `tracking_uri` for connecting: with the variable's password, if any.

    Raises:
        UserError: the URI needs a password, and the variable does not have it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if masked(given) == masked(uri):
        return given
    if "***" in uri:
        raise UserError(
            f"the password of {uri} is not recorded; set MLFLOW_TRACKING_URI to the full address, "
            "as it was in the run"
        )
    return uri


def embedded_store() -> tuple[str, str]:
    """Create or migrate the embedded store for a server; return its URI and its artifacts' URI."""
    uri = _embedded_uri()
    with store_lock(uri):
        _migrate(uri)
    return uri, (home.mlflow_store() / "artifacts").as_uri()


def _embedded_uri() -> str:
    return f"sqlite:///{home.mlflow_store() / 'mlflow.db'}"


def _absolute(sqlite_uri: str) -> str:
    path, mark, options = sqlite_uri.partition(":///")[2].partition("?")
    if path in {"", ":memory:"}:
        raise UserError(f"tracking uri {masked(sqlite_uri)!r} names no file; {POSSIBLE}")
    check_path(path, "the MLflow store")
    absolute = (home.home() / Path(path).expanduser()).resolve()
    return f"{sqlite_uri.partition(':')[0]}:///{absolute}{mark}{options}"


def database_file(uri: str) -> Path | None:
    """Return the SQLite file of a URI from `tracking_uri`; None for any other store."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Lock an SQLite store against other processes; for any other store do nothing.

    Raises:
        UnwritableError: its folder can't be written to.
    """
    from filelock import FileLock

    file = database_file(uri)
    if file is None:
        yield
        return
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f"{file.name}.lock")):
        yield


def store_client(uri: str) -> "MlflowClient":
    """Create or migrate the store, and return a client."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").addFilter(_is_not_raised)

    with store_lock(uri):
        _migrate(uri)
    connecting = connecting_uri(uri)
    return MlflowClient(tracking_uri=connecting, registry_uri=connecting)


def ready_client(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """Create store and experiment if needed, and return a client and the experiment's id.

    Safe in several processes at once.

    Raises:
        UserError: the experiment was deleted, or the embedded store was moved.
    """
    client = store_client(uri)
    with store_lock(uri):
        found = client.get_experiment_by_name(experiment) or _create(client, uri, experiment)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {experiment!r} was deleted in {uri}; choose another name, or restore it "
            f"with `mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    _check_not_moved(uri, found.artifact_location)
    return client, found.experiment_id


def _check_not_moved(uri: str, artifact_location: str) -> None:
    """Refuse an experiment whose artifacts are located where the store was before it was moved.

    Raises:
        UserError: the store was moved; the message contains the command that repairs it.
    """
    file = database_file(uri)
    if file is None or not artifact_location.startswith("file:"):
        return
    place = Path(unquote(urlsplit(artifact_location).path))
    root = file.parent / "artifacts"
    if place.is_relative_to(root) or any(one.exists() for one in (place, place.parent)):
        return
    old = place.parent.parent.parent
    raise UserError(
        f"the MLflow store {file} was moved: its files were at {place}, which is missing; "
        f"repair it with: adapterflow moved {old}"
    )


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Return whether a line is more than an error that mlflow 3.17 also raises."""
    return record.exc_info is None


@cache
def _migrate(uri: str) -> None:
    """Migrate an SQLite store to this mlflow's schema, once per process and under the store's lock.

    mlflow 3.17 migrates a new database in every process that opens it, and two processes at once
    corrupt it.

    Raises:
        UserError: the store was written by a newer mlflow.
    """
    file = database_file(uri)
    if file is None:
        return
    from alembic.util.exc import CommandError
    from mlflow import db
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # These log sixty lines for a new database.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    upgrade = db.upgrade.callback  # the function behind the command `mlflow db upgrade`
    assert upgrade is not None  # noqa: S101 - click: None only for a command without a function
    try:
        upgrade(uri)
    except CommandError as error:  # an unknown schema revision
        raise UserError(
            f"the MLflow store {file} was written by a newer mlflow than {version('mlflow')} "
            f"({error}); install the newer one, or set ADAPTERFLOW_HOME to another folder"
        ) from error
    # The first to open a new store determines where mlflow's default experiment has its artifacts.
    SqlAlchemyStore(uri, (file.parent / "artifacts").as_uri())


def _create(client: "MlflowClient", uri: str, name: str) -> "Experiment":
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, artifact_location=_artifact_location(uri, name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.get_experiment_by_name(name)
    assert created is not None, name  # noqa: S101  # created above, by us or by another process
    return created


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Return the artifact location of a new experiment; None if a server chooses it."""
    if uri.startswith(("http:", "https:", "databricks", "uc")):
        return None
    file = database_file(uri)
    root = file.parent if file else home.mlflow_store()
    folder = re.sub(r"[^A-Za-z0-9_-]+", "-", experiment)[:_LONGEST_FOLDER]
    if folder != experiment:
        folder += "-" + hashlib.sha256(experiment.encode()).hexdigest()[:8]
    return (root / "artifacts" / folder).as_uri()
