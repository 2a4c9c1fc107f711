"""The servers of `adapterflow up` and `down`: Prefect, MLflow and a worker on this machine."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from flows.server.background import Background
from flows.server.database_lock import exclusive_lock
from flows.server.embedded import CLIENT_SETTINGS, FIRST_UI, database_url
from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home

POOL = "adapterflow"
"""The work pool of all deployments."""

_HOST = "127.0.0.1"
_DEPLOYMENTS = "deployments/prefect.yaml"


class Stack:
    """The servers and the worker of one home.

    Args:
        prefect_port: of this machine's loopback, as `mlflow_port`.
        tell: called with a line before each wait: what `up` is doing.
    """

    def __init__(
        self, prefect_port: int, mlflow_port: int, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._ports = {"prefect": prefect_port, "mlflow": mlflow_port}
        self.prefect_url = f"http://{_HOST}:{prefect_port}"
        self.mlflow_url = f"http://{_HOST}:{mlflow_port}"
        self._processes = Background(home.prefect_store())
        self._tell = tell
        self.notes: list[str] = []
        """What the last `up` did that a user should know of."""

    def up(self) -> None:
        """Start what is not running, wait until each process answers, and deploy.

        Raises:
            UserError: a port is taken or given twice, a running server has another port, or a run
                uses the database through a server of its own.
            AdapterflowError: a process exited or did not answer in time, or a file in
                `deployments/` was refused.
        """
        if len(set(self._ports.values())) < len(self._ports):
            raise UserError(
                f"--prefect-port and --mlflow-port are both {self._ports['prefect']}; each server "
                "needs its own port"
            )
        running = self._processes.ports()
        # The children of a killed server may still hold its port.
        self._processes.stop([name for name in self._ports if name not in running])
        for name, port in self._ports.items():
            _check_port(name, port, running)
        with ExitStack() as lock:
            if "prefect" not in running:
                lock.enter_context(exclusive_lock())
            try:
                self._start_and_deploy(running)
            except BaseException:
                self._processes.stop([name for name in _STOP_ORDER if name not in running])
                raise

    def _start_and_deploy(self, running: dict[str, int | None]) -> None:
        self.notes = []
        if "mlflow" not in running:
            self._tell("starting MLflow, on a new home with its database")
            self._start_mlflow()
        if "prefect" not in running:
            self._start_prefect()
        for name, url in (("prefect", f"{self.prefect_url}/api"), ("mlflow", self.mlflow_url)):
            self._wait(name, lambda health=f"{url}/health": _answers(health))  # type: ignore[misc]
        has_own_pool = self._install()
        if has_own_pool and "worker" not in running:  # it starts while the deployments are read
            words = ["prefect", "worker", "start", f"--pool={POOL}", "--type=process"]
            self._processes.start("worker", words, self.environment(), None)
        self._tell(f"deploying the flows of {_DEPLOYMENTS}")
        self._prefect("deploy", f"--prefect-file={_DEPLOYMENTS}", "--all")
        self._remove_former_deployments()
        if has_own_pool:
            self._wait("worker", self._worker_is_online)

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        self._tell(f"waiting for {name}, whose log is {self._processes.log(name)}")
        self._processes.wait(name, is_ready)

    def _install(self) -> bool:
        """Install the work pool and what ends lost runs; return whether the pool is for processes.

        Otherwise somebody else made it: it stays as it is, and workers of its type take the runs.
        """
        from flows.server.automations import install_lost_runs

        with self._is_used():
            install_lost_runs()
            return self._install_pool()

    def _install_pool(self) -> bool:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
        from prefect.exceptions import ObjectAlreadyExists
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)
        with get_client(sync_client=True) as client:
            try:
                client.create_work_pool(pool)
            except ObjectAlreadyExists:
                kind = client.read_work_pool(POOL).type
                if kind != ProcessWorker.type:
                    self.notes.append(_about_pool_of(kind, self.prefect_url))
                    return False
                # It stays paused, or limited, if someone said so in the UI.
                client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
        return True

    def _remove_former_deployments(self) -> None:
        from flows.server.former_deployments import remove_former_deployments

        with self._is_used():
            self.notes += remove_former_deployments()

    def _is_used(self) -> AbstractContextManager[object]:
        """Have this process use the Prefect server in the block."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        return temporary_settings({PREFECT_API_URL: f"{self.prefect_url}/api"})

    def environment(self) -> dict[str, str]:
        """Return the environment variables of every process that uses these servers."""
        return {
            **_prefect_variables(self.prefect_url),
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def _start_prefect(self) -> None:
        port = self._ports["prefect"]
        settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url(),
            # Prefect's default lets the pages of any site call this server.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{self.prefect_url},http://localhost:{port}",
            # Leases in memory, Prefect's default, are lost in a restart: a device slot held then
            # would never be released. In files they are in Prefect's home, which another stack of
            # the same user must not share.
            "PREFECT_HOME": str(home.prefect_store()),
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            **FIRST_UI,
        }
        words = ["flows.server.prefect_server", f"--host={_HOST}", f"--port={port}"]
        self._processes.start("prefect", words, self.environment() | settings, port)

    def _start_mlflow(self) -> None:
        from tasks.tracking import embedded_store

        # Artifacts stay in the embedded store's folder, which `adapterflow train` uses directly.
        uri, artifacts = embedded_store()
        port = self._ports["mlflow"]
        words = ["mlflow", "server", f"--host={_HOST}", f"--port={port}", "--workers=1"]
        words += [f"--backend-store-uri={uri}"]
        words += ["--no-serve-artifacts", f"--default-artifact-root={artifacts}"]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._processes.start("mlflow", words, self.environment() | settings, port)

    def _prefect(self, *words: str) -> None:
        done = subprocess.run(  # noqa: S603 - our own environment's program
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=home.CHECKOUT,
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise AdapterflowError(f"prefect {' '.join(words)} failed:\n{output}")

    def _worker_is_online(self) -> bool:
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.prefect_url}/api/work_pools/{POOL}/workers/filter",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return any(worker["status"] == "ONLINE" for worker in json.load(answer))
        except OSError:  # mostly 503, Prefect's answer while its SQLite database is busy
            return False


_STOP_ORDER = ("worker", "mlflow", "prefect")
"""The worker first: its runs can still report their end to both servers."""


def stop_stack() -> list[str]:
    """Stop the processes of this home's stack; return the names of those that were running."""
    return Background(home.prefect_store()).stop(_STOP_ORDER)


def running_prefect() -> dict[str, str]:
    """Return the variables of a process that uses this home's Prefect; none if it is not running.

    One that is just starting is waited for.
    """
    port = _answering("prefect", "/api/health")
    return _prefect_variables(f"http://{_HOST}:{port}") if port else {}


def running_mlflow() -> dict[str, str]:
    """Return the variables of a process that uses this home's MLflow; none if it is not running.

    One that is just starting is waited for.
    """
    port = _answering("mlflow", "/health")
    return {"MLFLOW_TRACKING_URI": f"http://{_HOST}:{port}"} if port else {}


def _answering(name: str, health: str) -> int | None:
    """Return the port of a server of this home once it answers; None if it is not running.

    Raises:
        AdapterflowError: it is running, and did not answer in time.
    """
    processes = Background(home.prefect_store())
    port = processes.ports().get(name)
    if port is None:
        return None
    try:
        processes.wait(name, lambda: _answers(f"http://{_HOST}:{port}{health}"))
    except AdapterflowError:
        if name in processes.ports():
            raise
        return None
    return port


def _prefect_variables(url: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home.prefect_store() / "results"),
        # Prefect adds the lines of these loggers to the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,transformers,peft,datasets",
        **CLIENT_SETTINGS,
    }


def _about_pool_of(kind: str, prefect_url: str) -> str:
    return (
        f"the work pool {POOL!r} is of the type {kind!r}, and was left as it is, without a worker; "
        f"start one with: prefect worker start --pool {POOL} --type {kind}; or, to have runs in "
        f"processes of this machine, delete the pool with: prefect work-pool delete {POOL}; and "
        f"run adapterflow up again. Both commands need PREFECT_API_URL={prefect_url}/api"
    )


def _check_port(name: str, port: int, running: dict[str, int | None]) -> None:
    if name in running:
        if running[name] != port:
            raise UserError(
                f"this home's {name} is running on port {running[name]}, not {port}; stop it first "
                "with adapterflow down"
            )
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise UserError(
                f"port {port} for {name} is in use by another program; stop that program, or "
                f"choose another port with --{name}-port"
            ) from None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own address
            return True
    except OSError:
        return False
