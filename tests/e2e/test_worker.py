"""The flow on a Prefect worker: what the UI's Retry and Cancel do, on a real server."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from flow_runs import sums, tiny_config
from mlflow import MlflowClient
from mlflow_server import free_port
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from running_stack import client_of, wait_until
from variant_sets import all_ended, completed_steps, set_config, variant_runs

from benchmarks.harness.variant_rows import tenant_rows
from flows.train_adapter import train_adapter
from flows.train_variants import train_variants

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")


class Installation:
    """A Prefect server and a process worker of its own, as a team has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.api_url = f"http://127.0.0.1:{port}/api"
        self.environment = {
            **os.environ,
            "ADAPTERFLOW_HOME": str(folder / "home"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        self._processes = [self._start("server", "start", "--host=127.0.0.1", f"--port={port}")]
        self._wait_for_server()
        with self.client() as client:
            client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
        self.training = self._deployed(train_adapter, "flows.train_adapter.train_adapter")
        self.set = self._deployed(train_variants, "flows.train_variants.train_variants")
        self._processes.append(self._start("worker", "start", "--pool=pool"))

    def _deployed(self, flow: Flow[..., Any], entrypoint: str) -> UUID:
        with self.client() as client:
            return client.create_deployment(
                client.create_flow(flow),
                "deployed",
                work_pool_name="pool",
                path=str(CHECKOUT),
                entrypoint=entrypoint,
                job_variables={"working_dir": str(CHECKOUT)},
            )

    def client(self) -> SyncPrefectClient:
        """Return a client of the server."""
        return client_of(self.api_url)

    def command(self, *words: str) -> None:
        """Run a `prefect` command, as a person does."""
        subprocess.run([PREFECT, *words], env=self.environment, check=True, capture_output=True)

    def stop(self) -> None:
        """End worker and server."""
        for process in reversed(self._processes):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:  # Prefect 3.8's worker may wait for ever
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def engine_of(self, flow_run_id: UUID) -> int:
        """Return the process that the worker started for a flow run."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = f"PREFECT__FLOW_RUN_ID={flow_run_id}".encode() in environment
            if mine and any(b"prefect" in word and b"engine" in word for word in words):
                return int(process.name)
        raise LookupError(flow_run_id)

    def _start(self, *words: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [PREFECT, *words],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_server(self) -> None:
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Start server and worker once for this module."""
    running = Installation(tmp_path_factory.mktemp("installation"))
    yield running
    running.stop()


@pytest.fixture
def parameters(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """Configure a training of some seconds, with a checkpoint after each step."""
    training: dict[str, object] = {"num_train_epochs": 25, "eval_steps": 5}
    config = tiny_config(tiny_base, sums(tmp_path / "sums.jsonl"), training=training)
    return {"config": json.loads(config.model_dump_json())}


class Run:
    """A run of a deployment, as somebody watches it in the UI."""

    def __init__(
        self,
        installation: Installation,
        parameters: dict[str, Any],
        deployment: UUID | None = None,
    ) -> None:
        self._all = installation
        with installation.client() as client:
            made = client.create_flow_run_from_deployment(
                deployment or installation.training, parameters=parameters
            )
        self.id = made.id

    def read(self) -> FlowRun:
        """Return the flow run as the server has it."""
        with self._all.client() as client:
            return client.read_flow_run(self.id)

    def wait_for(self, name: str) -> None:
        """Wait for a state by its name."""
        wait_until(lambda: (s := self.read().state) and s.name == name, f"the state {name}")

    def wait_for_crash(self) -> None:
        """Wait until the crash is reported for good.

        Prefect 3.8 reports it twice, by the runner and some seconds later by the worker, which
        would overwrite a retry in between.
        """
        self.wait_for("Crashed")
        time.sleep(8)

    def wait_for_checkpoint(self, after_step: int = 0) -> int:
        """Wait for a checkpoint of a later step, and give its step."""

        def newest() -> int | None:
            places = self._outputs.glob(f"{self._mine}/checkpoints/checkpoint-*/complete.json")
            steps = [int(place.parent.name.split("-")[1]) for place in places]
            return max((step for step in steps if step > after_step), default=None)

        return int(wait_until(newest, "a checkpoint"))

    @property
    def _outputs(self) -> Path:
        return self._all.folder / "home" / "outputs"

    @property
    def _mine(self) -> str:
        """The run's folder; its name is what the run is called once it begins."""
        return f"*-{str(self.id)[:8]}"

    @property
    def adapter(self) -> bytes:
        """The saved adapter's bytes."""
        (folder,) = self._outputs.glob(self._mine)
        return (folder / "adapters/default/adapter_model.safetensors").read_bytes()

    def mlflow_status(self) -> list[str]:
        """Return the status of each MLflow run of this flow run."""
        client = MlflowClient(f"sqlite:///{self._all.folder}/home/mlruns/mlflow.db")
        experiment = client.get_experiment_by_name("adapterflow")
        assert experiment
        tag = f"tags.`prefect.flow_run_id` = '{self.id}'"
        return [r.info.status for r in client.search_runs([experiment.experiment_id], tag)]


def test_a_run_is_killed_cancelled_and_retried_to_the_same_adapter(
    installation: Installation, parameters: dict[str, Any]
) -> None:
    """After SIGKILL and Retry, then Cancel and Retry, a run ends as the undisturbed one does.

    While nobody retries the crashed run, the next one tells MLflow that it FAILED.
    """
    run = Run(installation, parameters)
    reached = run.wait_for_checkpoint()
    os.kill(installation.engine_of(run.id), signal.SIGKILL)
    run.wait_for_crash()
    assert run.mlflow_status() == ["RUNNING"]
    undisturbed = Run(installation, parameters)
    undisturbed.wait_for_checkpoint()
    assert run.mlflow_status() == ["FAILED"]
    undisturbed.wait_for("Completed")

    installation.command("flow-run", "retry", str(run.id))
    reached = run.wait_for_checkpoint(reached)
    with installation.client() as client:  # `prefect flow-run cancel` may come too late
        client.set_flow_run_state(run.id, Cancelling())
    run.wait_for("Cancelled")
    wait_until(lambda: run.mlflow_status() == ["KILLED"], "MLflow to hear of the end")

    installation.command("flow-run", "retry", str(run.id))
    run.wait_for("Completed")
    assert run.adapter == undisturbed.adapter
    assert run.mlflow_status() == ["FINISHED"]


def test_a_set_of_variants_is_cancelled_and_retried(
    installation: Installation, tiny_base: Path, tmp_path: Path
) -> None:
    """Cancel ends variants and processes; Retry trains what is missing, and nothing twice."""
    data = tenant_rows(tmp_path / "rows.jsonl", 5)
    config = set_config(tiny_base, data, {"split_by": "tenant"})
    given = {"config": json.loads(config.model_dump_json())}
    with temporary_settings({PREFECT_API_URL: installation.api_url}):
        run = Run(installation, given, installation.set)
        reached = {"Completed", "Running"}
        wait_until(lambda: reached <= _states(run.id), "a variant that ended, and one that has not")
        processes = psutil.Process(installation.engine_of(run.id)).children(recursive=True)
        with installation.client() as client:  # `prefect flow-run cancel` would come too late
            client.set_flow_run_state(run.id, Cancelling())
        run.wait_for("Cancelled")
        assert _states(run.id) == {"Completed", "Cancelled"}
        assert processes
        assert all_ended(processes)
        wait_until(lambda: run.mlflow_status() == ["KILLED"], "MLflow to hear of the end")

        installation.command("flow-run", "retry", str(run.id))
        run.wait_for("Completed")
        assert _states(run.id) == {"Completed"}
        counts = completed_steps(variant_runs(run.id))
    assert [one["train_adapter"] for one in counts.values()] == [1] * 5
    assert run.mlflow_status() == ["FINISHED"]


def _states(set_id: UUID) -> set[str | None]:
    return {run.state_name for run in variant_runs(set_id)}
