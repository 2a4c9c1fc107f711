"""The embedded Prefect server: one for each run, gone with it, and no trouble to its neighbours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config

from tasks.records import ReportRecord

pytestmark = pytest.mark.slow

ADAPTERFLOW = Path(sys.executable).with_name("adapterflow")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the variables of a new home without any server."""
    known = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**known, "ADAPTERFLOW_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path)}


@pytest.fixture
def config_file(tiny_base: Path, tmp_path: Path) -> Path:
    """Write a configuration for a run of seconds."""
    file = tmp_path / "config.yaml"
    file.write_text(tiny_config(tiny_base, sums(tmp_path / "sums.jsonl")).model_dump_json())
    return file


def started(config_file: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a run in a process of its own."""
    return subprocess.Popen(
        [ADAPTERFLOW, "train", config_file, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_runs_at_once_share_a_new_home(config_file: Path, environment: dict[str, str]) -> None:
    """Two runs that both find an empty home make its stores once, and train the same adapter."""
    runs = [started(config_file, environment) for _ in range(2)]
    ended = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ended
    first, second = (ReportRecord.model_validate_json(out) for out, _ in ended)
    assert first.saved.weights.sha256 == second.saved.weights.sha256
    assert first.saved.folder != second.saved.folder


def test_the_server_ends_with_a_killed_run(config_file: Path, environment: dict[str, str]) -> None:
    """A run that is killed outright leaves no server process behind.

    As long as it lives, `adapterflow up` names it instead of starting a second server beside it.
    """
    run = started(config_file, environment)
    while not (servers := _servers_in(environment["ADAPTERFLOW_HOME"])):
        assert run.poll() is None
        time.sleep(0.1)
    up = subprocess.run(
        [ADAPTERFLOW, "up", "--prefect-port=4999", "--mlflow-port=4998"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert up.returncode == 2, up.stderr
    assert f"adapterflow train {config_file} --json (process {run.pid})" in up.stderr
    assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.communicate()
    for _ in range(300):
        if not (servers := _servers_in(environment["ADAPTERFLOW_HOME"])):
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {servers}")


def _servers_in(home: str) -> list[int]:
    """Return the processes of embedded servers of a home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"flows.server.embedded_server" in words
            and f"ADAPTERFLOW_HOME={home}".encode() in variables
        ):
            found.append(int(process.name))
    return found
