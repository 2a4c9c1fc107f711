"""Whatever starts a Prefect or MLflow process, or tells somebody to, switches usage data off."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.server.embedded import ui_command as prefect_ui
from tasks.inference.serving import serve_command
from tasks.records import RunRecord
from tasks.tracking import ui_command as mlflow_ui

CHECKOUT = Path(__file__).parents[2]
PRODUCTION = CHECKOUT / "deployments/production"
CLIENT = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
# Prefect's newer UI asks an analytics host, whatever the others say.
SERVER = {**CLIENT, "PREFECT_SERVER_UI_V2_ENABLED": "false"}
MLFLOW = {"MLFLOW_DISABLE_TELEMETRY": "true"}
NEEDED = {
    r"prefect server start|flows\.server\.prefect_server": SERVER,
    r"prefect worker start|prefect .*deploy": CLIENT,
    r"mlflow (ui|server|models serve)": MLFLOW,
}


def needed_by(command: str) -> dict[str, str]:
    """Return the variables without which a command's processes send usage data."""
    found: dict[str, str] = {}
    for words, settings in NEEDED.items():
        found |= settings if re.search(words, command) else {}
    return found


def test_the_services_of_compose() -> None:
    """Each service has the variables for what its command starts; so has the image."""
    services = yaml.safe_load((PRODUCTION / "compose.yaml").read_text())["services"]
    wanted = {}
    for name, service in services.items():
        words = service.get("command", [])
        wanted[name] = needed_by(words if isinstance(words, str) else " ".join(words))
        assert wanted[name].items() <= service["environment"].items(), name
    assert [name for name in wanted if wanted[name]] == ["prefect", "mlflow", "worker"]
    image = (PRODUCTION / "Dockerfile").read_text()
    assert needed_by(" ".join(json.loads(image.split("\nCMD ")[1])))
    for name, value in (SERVER | MLFLOW).items():
        assert f"{name}={value}" in image


def test_the_jobs_of_kubernetes() -> None:
    """A job runs flows, which are clients of both."""
    template = json.loads((PRODUCTION / "kubernetes-job-template.json").read_text())
    given = template["variables"]["properties"]["env"]["default"]
    assert (CLIENT | MLFLOW).items() <= given.items()


@pytest.mark.parametrize("command", ["mlflow ui", "mlflow models serve", "prefect server start"])
def test_the_commands_that_are_printed(command: str, tmp_path: Path) -> None:
    """As a shell reads them, they begin with the variables."""
    store = f"sqlite:///{tmp_path}/a b/mlflow.db"
    run = RunRecord(
        tracking_uri=store, experiment="e", run_name="r", flow_run_id="f", folder=tmp_path
    )
    printed = {
        "mlflow ui": mlflow_ui(run),
        "mlflow models serve": serve_command(tmp_path),
        "prefect server start": _of_an_embedded_run(),
    }[command]
    assert command in printed
    words = [word for word in shlex.split(printed) if re.match(r"[A-Z_0-9]+=", word)]
    given = dict(word.split("=", 1) for word in words)
    assert needed_by(printed).items() <= given.items()


def _of_an_embedded_run() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.server.embedded.EmbeddedServer.of_this_process", object())
        return prefect_ui()


def test_the_commands_of_the_pages() -> None:
    """A reader who copies a line of a page's console sends no usage data."""
    places = ("*.md", "docs/*.md", "deployments/*.md")
    pages = [page for place in places for page in CHECKOUT.glob(place)]
    lines = [
        line
        for page in pages
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        if needed_by(line)
    ]
    assert lines
    for line in lines:
        for name, value in needed_by(line).items():
            assert f"{name}={value}" in line


def test_no_place_was_forgotten() -> None:
    """A new file that starts such a process has to be looked at here, or on a running stack."""
    started = re.compile(
        r"(prefect|mlflow)\W+(server|worker|ui|models)\W+(start|serve|-)"
        r"|mlflow ui|-m flows\.server\.(embedded|prefect)_server|words = \[\"(prefect|mlflow)\""
    )
    files = [
        file.relative_to(CHECKOUT).as_posix()
        for folder in ("flows", "tasks", "deployments")
        for file in (CHECKOUT / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".json", ".sh", ""} and file.is_file()
        if started.search(file.read_text())
    ]
    assert sorted(files) == [
        "deployments/production/Dockerfile",
        "deployments/production/compose.yaml",
        "flows/server/embedded.py",
        "flows/server/prefect_server.py",
        "flows/server/stack.py",
        "flows/variants/pool_place.py",  # a message
        "tasks/inference/serving.py",
        "tasks/tracking/adapter_bundle.py",  # a docstring
        "tasks/tracking/run.py",
    ]


def test_a_flow_that_python_starts() -> None:
    """Prefect's client decides when it is imported, which our packages do after saying no."""
    is_off = f"all(os.environ[name] == value for name, value in {CLIENT}.items())"
    code = f"import flows, os, sys; print('prefect' in sys.modules, {is_off})"
    known = {name: value for name, value in os.environ.items() if name not in CLIENT}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
