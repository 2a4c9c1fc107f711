"""A real vLLM, which `make vllm` installs; `ADAPTERFLOW_VLLM` names another one's program."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from documents import ROOT

PROGRAM = os.environ.get("ADAPTERFLOW_VLLM", str(ROOT / ".venv-vllm/bin/vllm"))
FOR_TESTS = ("--enforce-eager", "--max-model-len", "512")
"""Arguments with which it starts sooner."""
needs_vllm = pytest.mark.skipif(
    not Path(PROGRAM).is_file(), reason="no vLLM; install it with: make vllm"
)
_SECONDS_TO_START = 540


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that is kept for a server, which may take minutes until it listens there.

    Otherwise a connection of another process may have been given it by then. The server has to
    set SO_REUSEADDR, as most do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@contextmanager
def running_vllm(
    command: Sequence[str | Path], port: int, folder: Path, variables: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start vLLM by a command; yield its process when it answers, and kill it in the end.

    Args:
        command: starts it.
        port: where it is to answer.
        folder: for its log, which a test that fails shows.
        variables: beside those of this process.
    """
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables}
    environment.pop("PYTHONPATH", None)  # its libraries are its own
    log = folder / "vllm.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield process
    finally:
        print(log.read_text()[-8000:])  # noqa: T201 - shown where the test fails
        # With the engine's own process, which outlives a server that is killed.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM does not answer; its status is {process.poll()}")
