"""A real PostgreSQL that a test starts in a folder of its own, as a user that is not root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow_server import free_port

_PASSWORD = "made-up"  # noqa: S105 - of a database that lives for a test


class Postgres:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def address(self, database: str, driver: str = "") -> str:
        """Return a database's address as SQLAlchemy reads it."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://adapterflow:{_PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> None:
        """Create a database, as the compose file's script does."""
        self.query(f"CREATE DATABASE {database}", "postgres")

    def query(self, statement: str, database: str) -> list[tuple[object, ...]]:
        """Run a statement, and give its rows."""
        import psycopg2

        connection = psycopg2.connect(self.address(database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server for as long as the block does; skip the test where none is installed."""
    programs = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if not all(programs.values()):
        pytest.skip("PostgreSQL is not installed: no initdb or postgres on PATH")
    # PostgreSQL refuses to run as root, and pytest's own folders are closed to others.
    owner = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if owner:
            entry = pwd.getpwnam(owner)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        secret = folder / "password"
        secret.write_text(_PASSWORD)
        secret.chmod(0o644)
        data, port = folder / "data", free_port()
        made = [f"--pgdata={data}", "--username=adapterflow", f"--pwfile={secret}"]
        subprocess.run(
            [str(programs["initdb"]), *made, "--auth=scram-sha-256", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            user=owner,
            cwd=folder,
        )
        options = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        server = subprocess.Popen(
            [str(programs["postgres"]), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner,
            cwd=folder,
        )
        try:
            running = Postgres(port)
            _wait(running)
            yield running
        finally:
            server.terminate()
            server.wait()


def _wait(server: Postgres) -> None:
    import time

    import psycopg2

    for _ in range(300):
        try:
            server.query("SELECT 1", "postgres")
        except psycopg2.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("PostgreSQL did not start")
