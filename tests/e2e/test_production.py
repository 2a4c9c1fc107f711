"""What the compose file sets up, run as processes: PostgreSQL, passwords, files on S3."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from flow_runs import sums, tiny_config
from mlflow_server import free_port
from postgres_server import Postgres, running_postgres
from s3_stand_in import BUCKET, Storage

from tasks.records import FileRecord, ReportRecord

pytestmark = pytest.mark.slow

ADAPTERFLOW = str(Path(sys.executable).with_name("adapterflow"))
USERS = Path(__file__).parents[2] / "deployments/production/mlflow-auth.ini"


class Production:
    """Both servers on PostgreSQL, with a password each, and MLflow's files on S3."""

    def __init__(self, folder: Path, postgres: Postgres, storage: Storage) -> None:
        self.folder, self.postgres = folder, postgres
        prefect_port, mlflow_port = free_port(), free_port()
        self.prefect, self.mlflow = (
            f"http://127.0.0.1:{port}" for port in (prefect_port, mlflow_port)
        )
        self.environment = {
            **os.environ,
            "ADAPTERFLOW_HOME": str(folder / "home"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": "team:a-secret",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "team",
            "MLFLOW_TRACKING_PASSWORD": "another-secret",
        }
        users = folder / "users.ini"
        users.write_text(USERS.read_text().replace("/data/", f"{folder}/"))
        settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": postgres.address("prefect", "asyncpg"),
            "PREFECT_SERVER_API_AUTH_STRING": "team:a-secret",
            "MLFLOW_BACKEND_STORE_URI": postgres.address("mlflow", "psycopg2"),
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_USERNAME": "team",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "another-secret",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **storage.environment,
        }
        mlflow = ["--app-name=basic-auth", f"--artifacts-destination=s3://{BUCKET}/mlflow"]
        mlflow += ["--workers=1"]
        words = {
            "prefect": ["server", "start", f"--port={prefect_port}"],
            "mlflow": ["server", f"--port={mlflow_port}", *mlflow],
        }
        self._processes = [self._start(name, given, settings) for name, given in words.items()]
        for name, health in (("prefect", f"{self.prefect}/api"), ("mlflow", self.mlflow)):
            self._wait(name, f"{health}/health")

    def _start(
        self, name: str, words: list[str], settings: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", name, *words, "--host=127.0.0.1"],
                env={**self.environment, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, name: str, health: str) -> None:
        for _ in range(1800):
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                with urlopen(health, timeout=5):  # noqa: S310
                    return
            except (URLError, TimeoutError):
                time.sleep(0.1)
        self.stop()
        raise TimeoutError((self.folder / f"{name}.log").read_text()[-3000:])

    def stop(self) -> None:
        """End both servers."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    """Start the stand-in once for this module."""
    running = Storage()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def production(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Start everything once for this module."""
    with running_postgres() as postgres:
        for database in ("prefect", "mlflow"):
            postgres.create(database)
        running = Production(tmp_path_factory.mktemp("production"), postgres, storage)
        yield running
        running.stop()


def test_a_run_is_recorded_in_both_databases_and_on_s3(
    production: Production, storage: Storage, tiny_base: Path, tmp_path: Path
) -> None:
    """A training with the passwords from the environment ends as one row here and one there.

    Its files are in the bucket, whose keys only MLflow's server has, and come back through it.
    """
    file = tmp_path / "config.yaml"
    file.write_text(tiny_config(tiny_base, sums(tmp_path / "sums.jsonl")).model_dump_json())
    public = {"MLFLOW_PUBLIC_URL": "https://mlflow.example.org"}
    done = subprocess.run(
        [ADAPTERFLOW, "train", str(file), "--json"],
        env={**production.environment, **public},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = ReportRecord.model_validate_json(done.stdout)
    flow_run = f"SELECT state_type FROM flow_run WHERE id = '{report.run.flow_run_id}'"  # noqa: S608
    assert production.postgres.query(flow_run, "prefect") == [("COMPLETED",)]
    tagged = f"SELECT run_uuid FROM tags WHERE value = '{report.run.flow_run_id}'"  # noqa: S608
    status = f"SELECT status FROM runs WHERE run_uuid IN ({tagged})"  # noqa: S608
    assert production.postgres.query(status, "mlflow") == [("FINISHED",)]
    link = "SELECT data FROM artifact WHERE key = 'mlflow-run'"
    ((linked,),) = production.postgres.query(link, "prefect")
    assert "https://mlflow.example.org/#/experiments/" in str(linked)
    assert report.model_uri
    weights = report.saved.weights
    kept = storage.files().items()
    assert [size for key, size in kept if key.endswith(weights.path.name)] == [weights.size_bytes]
    copy = tmp_path / "copy"
    subprocess.run(
        [ADAPTERFLOW, "export", report.model_uri, str(copy)],
        env=production.environment,
        check=True,
        capture_output=True,
    )
    assert FileRecord.of(copy / weights.path.name).sha256 == weights.sha256
    said = done.stdout + done.stderr + json.dumps(report.model_dump(mode="json"))
    assert "another-secret" not in said
    assert "a-secret" not in said
    assert "a-third-secret" not in said


def test_neither_server_answers_without_a_password(production: Production) -> None:
    """Both refuse whoever gives none; only whether they live is public."""
    for url in (
        f"{production.prefect}/api/admin/version",
        f"{production.mlflow}/api/2.0/mlflow/experiments/search?max_results=1",
    ):
        with pytest.raises(HTTPError) as refused:
            urlopen(url, timeout=30)  # noqa: S310
        assert refused.value.code == 401


def test_the_worker_s_command_lets_the_server_end_lost_runs(production: Production) -> None:
    """Said again, as a worker that restarts does, there is one automation still."""
    for _ in range(2):
        words = [sys.executable, "-m", "flows.server.automations"]
        subprocess.run(words, env=production.environment, check=True)
    names = production.postgres.query("SELECT name FROM automation", "prefect")
    assert names == [("adapterflow: runs whose machine is lost",)]


@pytest.mark.parametrize("password", [None, "team:a-guess"])
@pytest.mark.parametrize("command", ["notify", "train"])
def test_a_refused_password_names_the_variable(
    production: Production, command: str, password: str | None, tiny_base: Path, tmp_path: Path
) -> None:
    """Without Prefect's password, or with a wrong one, a command says which variable holds it."""
    environment = {**production.environment, "PREFECT_API_AUTH_STRING": password or ""}
    file = tmp_path / "config.yaml"
    file.write_text(tiny_config(tiny_base, sums(tmp_path / "sums.jsonl")).model_dump_json())
    done = subprocess.run(
        [ADAPTERFLOW, command, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    said = "refuses the credentials" if password else "requires a name and password"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_password_in_the_tracking_uri_lets_in_and_is_not_shown(production: Production) -> None:
    """A name and password in MLFLOW_TRACKING_URI are used; the messages have none of it."""
    for password, said in (("another-secret", "no registered model"), ("a-guess", "registry at")):
        uri = production.mlflow.replace("://", f"://team:{password}@")
        others = {k: v for k, v in production.environment.items() if "MLFLOW" not in k}
        done = subprocess.run(
            [ADAPTERFLOW, "history", "nothing"],
            env={**others, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert password not in done.stderr
