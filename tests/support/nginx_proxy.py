"""The proxy before vLLM, as nginx with the configuration that compose and Kubernetes have."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from documents import ROOT
from mlflow_server import free_port

_TEMPLATE = ROOT / "deployments/production/serving/proxy.conf.template"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def serving_proxy(folder: Path, vllm: str, administrator: str, client: str) -> Iterator[int]:
    """Start the proxy on loopback, and yield its port; skip the test where there is no nginx.

    Args:
        folder: for its files.
        vllm: host and port of what it passes requests to.
        administrator: the token that it puts into them.
        client: the token that it demands.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("no nginx; install it with: apt-get install nginx-light")
    port = free_port()
    server = rendered(
        port,
        NGINX_LOCAL_RESOLVERS="127.0.0.1",
        VLLM_ADDRESS=vllm,
        VLLM_API_KEY=administrator,
        SERVING_CLIENT_TOKEN=client,
    )
    kept = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in _TEMPORARY)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{kept}{server}}}\n"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", configuration])
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def rendered(port: int, **variables: str) -> str:
    """Fill in the template as nginx's image does, and have it listen on loopback."""
    text = _TEMPLATE.read_text()
    for name, value in variables.items():
        assert f"${{{name}}}" in text, name
        text = text.replace(f"${{{name}}}", value)
    assert not re.search(r"\$\{", text), "a variable that the services do not set"
    assert "listen 8080;" in text
    return text.replace("listen 8080;", f"listen 127.0.0.1:{port};")


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, "nginx refuses the configuration"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("nginx does not listen")
