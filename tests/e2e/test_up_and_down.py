"""`adapterflow up` and `down`: what is missing is started, and just that is stopped again."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from running_stack import RunningStack

from flows.server.stack import POOL, Stack

pytestmark = pytest.mark.slow


def test_up_again_keeps_what_runs_and_down_ends_just_that(tmp_path: Path) -> None:
    """A second `up` starts what is missing; `down` ends all of its processes, and only those.

    The work pool stays paused, and keeps its limit, if someone set them. Each wait has its line.
    """
    stack = RunningStack(tmp_path)
    try:
        stack.up()
        waits = ("starting MLflow", "waiting for prefect", "waiting for mlflow", "deploying")
        found = [stack.told.find(one) for one in (*waits, "waiting for worker")]
        assert -1 not in found
        assert found == sorted(found)
        before = stack.processes()
        bystander = psutil.Popen(["sleep", "600"])
        psutil.Process(before["mlflow"]).kill()  # its child goes on, and holds the port
        wanted = WorkPoolUpdate(is_paused=True, concurrency_limit=3)
        with stack.client() as client:
            client.update_work_pool(POOL, wanted)
        stack.up()
        again = stack.processes()
        assert {name for name in again if again[name] != before[name]} == {"mlflow"}
        with stack.client() as client:
            pool = client.read_work_pool(POOL)
        assert (pool.is_paused, pool.concurrency_limit) == (True, 3)
    finally:
        done = stack.command("down")
    assert done.stdout.strip() == "stopped: worker, mlflow, prefect"
    assert not [pid for pid in again.values() if psutil.pid_exists(pid) and is_running(pid)]
    assert bystander.is_running()
    bystander.kill()
    bystander.wait()
    with pytest.raises(URLError):
        urlopen(f"{stack.prefect_url}/api/health", timeout=5)  # noqa: S310
    assert stack.command("down").stdout.strip() == "nothing was running"


def is_running(pid: int) -> bool:
    """Return whether a process runs and is no zombie."""
    return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """A port that another program has is a user's mistake, and nothing is left running."""
    stack = RunningStack(tmp_path)
    taken = HTTPServer(("127.0.0.1", stack.mlflow_port), BaseHTTPRequestHandler)
    try:
        ports = (f"--prefect-port={stack.prefect_port}", f"--mlflow-port={stack.mlflow_port}")
        done = stack.command("up", *ports)
    finally:
        taken.server_close()
    assert done.returncode == 2
    assert "--mlflow-port" in done.stderr
    assert stack.command("down").stdout.strip() == "nothing was running"


def test_a_busy_server_has_no_worker_yet() -> None:
    """While Prefect answers 503, as it does when its database is busy, `up` goes on waiting."""

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert not Stack(server.server_port, mlflow_port=1)._worker_is_online()
    finally:
        server.shutdown()
        server.server_close()
