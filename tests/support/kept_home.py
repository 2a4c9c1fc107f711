"""The home of an older version, left by a kill in mid-training, put where a test wants it.

`tests/e2e/kept-home-347bbb7.tar.xz` was made by the version of that commit: a training of a tiny
Llama, killed by SIGKILL once its checkpoint of step 20 of 60 was written.
"""

import json
import sqlite3
import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parents[1] / "e2e/kept-home-347bbb7.tar.xz"
_MADE_IN = "/tmp/kept-home"  # noqa: S108 - a name within the archive, no file here
_TEXT = {".json", ".jsonl", ".yaml", ""}


def unpack_home(folder: Path) -> Path:
    """Unpack the home to `folder`, every path in its files and databases set to the new place."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for position in folder.rglob("position.json"):  # of what is shipped of a journal, in bytes
        shipped = json.loads(position.read_bytes())
        begun = position.with_name("journal.jsonl").read_bytes()[: shipped["shipped_bytes"]]
        position.write_text(json.dumps(shipped | {"shipped_bytes": len(_relocated(begun, folder))}))
    for file in folder.rglob("*"):
        if file.suffix == ".db":
            _relocate_database(file, str(folder))
        elif file.is_file() and file.suffix in _TEXT:
            file.write_bytes(_relocated(file.read_bytes(), folder))
    return folder


def _relocated(content: bytes, folder: Path) -> bytes:
    return content.replace(_MADE_IN.encode(), str(folder).encode())


def _relocate_database(file: Path, folder: str) -> None:
    with sqlite3.connect(file) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '  # noqa: S608
                    f'WHERE typeof("{column}") = \'text\' AND instr("{column}", ?)',
                    (_MADE_IN, folder, _MADE_IN),
                )
