"""The embedded MLflow store after its folder was moved: the paths in its database, set right.

mlflow 3.17 keeps the place of every experiment, run and model as an absolute URI. In a moved store
these lead to the old folder, which mlflow would make anew without a word.
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
    """Let the embedded store's database lead to where the store is now; give the rows changed.

    Args:
        old: the absolute folder that the home was in before.

    Raises:
        UserError: there is no embedded store, or nothing in it leads to the old folder.
    """
    file = home.mlflow_store() / "mlflow.db"
    if not file.exists():
        raise UserError(f"there is no MLflow store {file}; set ADAPTERFLOW_HOME to where it is")
    before, after = (f"{one.as_uri()}/" for one in (old, home.home()))
    with store_lock(f"sqlite:///{file}"), closing(sqlite3.connect(file)) as database, database:
        changed = sum(_replace(database, *place, before, after) for place in PLACES)
    if not changed:
        raise UserError(f"nothing in {file} leads to {old}; give the folder that held mlruns/")
    return changed


def _replace(database: sqlite3.Connection, table: str, column: str, before: str, after: str) -> int:
    known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    if column not in known:  # of an older or a newer mlflow
        return 0
    return database.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - our own names
        f"WHERE substr({column}, 1, ?) = ?",
        (after, len(before) + 1, len(before), before),
    ).rowcount
