"""The Prefect server goes away for a minute in mid-training: nobody but it notices."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config
from mlflow_server import free_port

from tasks.records import ReportRecord

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
_SECONDS_AWAY = 60


class PrefectServer:
    """A server with its database in a folder, at the same address each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **os.environ,
            "ADAPTERFLOW_HOME": str(folder / "home"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api_url,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["server", "start", "--host=127.0.0.1", f"--port={self.port}"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "prefect", *words],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        """Kill it outright."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrefectServer]:
    """Start a server for this test."""
    made = PrefectServer(tmp_path)
    made.start()
    yield made
    made.kill()


def test_a_run_outlives_a_minute_without_its_server(
    server: PrefectServer, tiny_base: Path, tmp_path: Path
) -> None:
    """The training goes on, its end waits for the server, and the run is completed."""
    config = tmp_path / "config.yaml"
    training: dict[str, object] = {"num_train_epochs": 60, "eval_steps": 5}
    data = sums(tmp_path / "sums.jsonl")
    config.write_text(tiny_config(tiny_base, data, training=training).model_dump_json())
    run = subprocess.Popen(
        [BIN / "adapterflow", "train", config, "--json"],
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("home/outputs/*/checkpoints/checkpoint-*/complete.json")):
        assert run.poll() is None
        time.sleep(0.1)
    server.kill()
    time.sleep(_SECONDS_AWAY)
    assert run.poll() is None
    server.start()
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    report = ReportRecord.model_validate_json(out)
    with urllib.request.urlopen(f"{server.api_url}/flow_runs/{report.run.flow_run_id}") as answer:  # noqa: S310
        assert json.load(answer)["state"]["name"] == "Completed"
