"""Which servers a command uses: what the user set, what `up` started, and nothing that is gone."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.server.servers import use_running_mlflow
from flows.server.stack import running_mlflow, running_prefect
from tasks.runtime import home


class Healthy(BaseHTTPRequestHandler):
    """Answers like a server that is up; refuses as many requests as it is told to first."""

    refusals = 0

    def do_GET(self) -> None:
        """Answer a health check."""
        if Healthy.refusals:
            Healthy.refusals -= 1
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Run a server on a port."""
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def noted(port: int) -> Iterator[int]:
    """Note both servers as started by `up`, with a process that carries their mark."""
    folder = home.prefect_store()
    folder.mkdir(parents=True)
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            env={**os.environ, "ADAPTERFLOW_STARTED_AS": f"{name} of {folder}"},
        )
        for name in ("prefect", "mlflow")
    }
    listed = {name: {"pid": one.pid, "port": port} for name, one in processes.items()}
    (folder / home.STACK_FILE).write_text(json.dumps(listed))
    yield port
    for one in processes.values():
        one.kill()
        one.communicate()


def test_the_servers_of_up_are_used_once_they_answer(
    noted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is just starting is waited for."""
    monkeypatch.setattr(Healthy, "refusals", 2)
    assert running_prefect()["PREFECT_API_URL"] == f"http://127.0.0.1:{noted}/api"
    assert not Healthy.refusals
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # as if it were not set
    use_running_mlflow()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{noted}"


def test_what_the_user_set_wins(noted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set stays as it is."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    use_running_mlflow()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example.org"


def test_a_stack_that_died_is_not_used(port: int) -> None:
    """Its file is still there, and its process ids may be another program's by now."""
    folder = home.prefect_store()
    folder.mkdir(parents=True)
    stale = {name: {"pid": os.getpid(), "port": port} for name in ("prefect", "mlflow")}
    (folder / home.STACK_FILE).write_text(json.dumps(stale))
    assert (running_prefect(), running_mlflow()) == ({}, {})
