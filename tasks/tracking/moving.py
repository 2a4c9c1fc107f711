"""Repair the embedded MLflow store after its folder was moved.

mlflow 3.17 stores the location of every experiment, run and model as an absolute URI. In a moved
store these point to the old folder, which mlflow would silently create again.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from tasks.errors import UserError
from tasks.runtime import home
from tasks.tracking.store import store_lock

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def repair(old: Path) -> int:
    """Update the paths in the embedded store's database; return the number of rows changed.

    Args:
        old: the absolute path of the home folder before the move.

    Raises:
        UserError: there is no embedded store, or nothing in it points to the old folder.
    """
    file = home.mlflow_store() / "mlflow.db"
    if not file.exists():
        raise UserError(f"there is no MLflow store {file}; set ADAPTERFLOW_HOME to its home folder")
    before, after = (f"{one.as_uri()}/" for one in (old, home.home()))
    with store_lock(f"sqlite:///{file}"), closing(sqlite3.connect(file)) as database, database:
        changed = sum(_replace(database, *place, before, after) for place in PLACES)
    if not changed:
        raise UserError(
            f"nothing in {file} points to {old}; give the folder that contained mlruns/"
        )
    return changed


def _replace(database: sqlite3.Connection, table: str, column: str, before: str, after: str) -> int:
    known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    if column not in known:  # the schema of another mlflow version
        return 0
    return database.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - our own names
        f"WHERE substr({column}, 1, ?) = ?",
        (after, len(before) + 1, len(before), before),
    ).rowcount
