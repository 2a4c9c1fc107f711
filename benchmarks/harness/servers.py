"""Servers of adapters, each as a process of its own that answers when it is handed over."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from benchmarks.harness.processes import ADAPTERFLOW, run_fresh

_SECONDS_TO_START = 600
_NOT_OF_VLLM = {"PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}


class Server(NamedTuple):
    """A server that answers."""

    url: str
    process: psutil.Process
    seconds_to_start: float


@contextmanager
def mlflow_server(
    sources: Mapping[str, Path], folder: Path, variables: Mapping[str, str]
) -> Iterator[Server]:
    """Start `mlflow models serve` on a bundle of adapters, and stop it in the end.

    Args:
        sources: the adapters' folders by their names.
        folder: where the bundle is written, and the log beside it.
        variables: the environment of the processes.

    Raises:
        ClickException: it does not start.
    """
    given = [f"{name}={source}" for name, source in sources.items()]
    command = [*ADAPTERFLOW, "bundle", str(folder), *given]
    run_fresh(command, folder.with_suffix(".log"), variables)
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", str(folder), "-h", "127.0.0.1", "-p", str(port)]
    # MLflow starts uvicorn by name, so it must be on the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = folder.with_suffix(".server.log")
    with _running(command, port, "ping", log, {**variables, "PATH": path}) as server:
        yield server


@contextmanager
def vllm_server(
    sources: Mapping[str, Path],
    folder: Path,
    program: str,
    more: str,
    variables: Mapping[str, str],
) -> Iterator[Server]:
    """Start vLLM by the command of `adapterflow serve`, and stop it in the end.

    Args:
        sources: the adapters' folders by their names.
        folder: names the files beside it: the command, and the log.
        program: vLLM's, of an environment of its own.
        more: further arguments for it.
        variables: the environment of the processes.

    Raises:
        ClickException: it does not start.
    """
    given = [f"{name}={source}" for name, source in sources.items()]
    port = _free_port()
    options = ["--print", "--port", str(port), "--vllm", program, "--vllm-args", more]
    printed = folder.with_suffix(".command")
    run_fresh([*ADAPTERFLOW, "serve", *given, *options], printed, variables)
    # In the same file is what libraries warn of.
    lines = [one for one in printed.read_text().splitlines() if one.startswith("VLLM_")]
    command = ["env", *shlex.split(lines[-1])]
    # Its libraries are of other versions than those of this environment, and it wants to choose
    # the number of threads itself: of two cores it would keep one for its own processes.
    own = {name: value for name, value in variables.items() if name not in _NOT_OF_VLLM}
    cores = sorted(os.sched_getaffinity(0))[: int(variables["OMP_NUM_THREADS"])]
    own.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    own.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with _running(command, port, "health", folder.with_suffix(".server.log"), own) as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], port: int, path: str, log: Path, variables: Mapping[str, str]
) -> Iterator[Server]:
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=variables, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/{path}", process, log)
        yield Server(url, psutil.Process(process.pid), time.perf_counter() - began)
    finally:
        # With the processes that it started, which may outlive it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.2)
    raise click.ClickException(f"the server did not start; see {log}")
