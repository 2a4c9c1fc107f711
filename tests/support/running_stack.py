"""`adapterflow up` in a home of its own, for the tests of what a team gets from it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

ADAPTERFLOW = Path(sys.executable).with_name("adapterflow")
ENDED = {"Completed", "Skipped", "Failed", "Crashed", "Cancelled"}


class RunningStack:
    """Prefect, MLflow and a worker as `adapterflow up` starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefect_port, self.mlflow_port = free_port(), free_port()
        self.prefect_url = f"http://127.0.0.1:{self.prefect_port}"
        self.mlflow_url = f"http://127.0.0.1:{self.mlflow_port}"
        known = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        self.told = ""
        """What the last `up` printed on stderr."""
        self.environment = {
            **known,
            "ADAPTERFLOW_HOME": str(folder / "home"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }

    def command(self, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        """Run the command line in this home, with a text on stdin."""
        return subprocess.run(
            [ADAPTERFLOW, *words],
            input=given,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command of the command line in this home, as a terminal does."""
        # A shell without a terminal lets what it starts ignore Ctrl-C, and that is inherited.
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            return subprocess.Popen(
                [ADAPTERFLOW, *words],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def up(self) -> str:
        """Start everything, and give what was printed on stdout."""
        ports = (f"--prefect-port={self.prefect_port}", f"--mlflow-port={self.mlflow_port}")
        done = self.command("up", *ports)
        assert done.returncode == 0, done.stderr + self.logs()
        self.told = done.stderr
        return done.stdout

    def logs(self) -> str:
        """Return the last lines of each process's log."""
        files = sorted((self.folder / "home/.prefect").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def processes(self) -> dict[str, int]:
        """Return the ids of the stack's processes, by name."""
        noted = json.loads((self.folder / "home/.prefect/stack.json").read_text())
        return {name: one["pid"] for name, one in noted.items()}

    def client(self) -> SyncPrefectClient:
        """Return a client of the Prefect server."""
        return client_of(f"{self.prefect_url}/api")

    def deployment(self, name: str) -> DeploymentResponse:
        """Return a deployment by `flow/name`."""
        with self.client() as client:
            return client.read_deployment_by_name(name)

    def start(self, deployment: str, parameters: dict[str, Any]) -> FlowRun:
        """Start a run of a deployment."""
        found = self.deployment(deployment)
        with self.client() as client:
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def runs_of(self, deployment: str) -> list[FlowRun]:
        """Return the runs of a deployment."""
        found = self.deployment(deployment)
        with self.client() as client:
            return client.read_flow_runs(
                deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [found.id]}})
            )

    def ended(self, run: FlowRun, seconds: float = 240) -> FlowRun:
        """Wait for the end of a run, and give it as it is then."""

        def look() -> FlowRun | None:
            with self.client() as client:
                found = client.read_flow_run(run.id)
            return found if found.state and found.state.name in ENDED else None

        found = wait_until(look, f"the end of {run.name}", seconds)
        assert isinstance(found, FlowRun)
        return found

    def log_of(self, run: FlowRun) -> list[Log]:
        """Return the lines of a run's log."""
        of_run = LogFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
        with self.client() as client:
            return client.read_logs(of_run)

    def artifacts(self, run: FlowRun) -> dict[str, str]:
        """Return what a run published, by key."""
        from prefect.client.schemas.filters import ArtifactFilter

        with self.client() as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter.model_validate(
                    {"flow_run_id": {"any_": [str(run.id)]}}
                ),
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [str(run.id)]}}),
            )
        return {str(one.key): str(one.data) for one in found}


@cache
def client_of(api_url: str) -> SyncPrefectClient:
    """Return a client of a Prefect server, which may be entered and left any number of times."""
    with temporary_settings({PREFECT_API_URL: api_url}):
        # Stays open: making one takes longer than asking it something.
        return get_client(sync_client=True).__enter__()


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:  # noqa: ANN401
    """Wait for a condition, and give what it gave."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.3)
    pytest.fail(f"waited in vain for {what}")
