"""Prefect's form as a person meets it: filled in with a browser, and the run that it starts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from flow_runs import sums
from running_stack import RunningStack, wait_until
from screenshots import browser, open_mlflow_run, open_prefect_run, open_report, window

from tasks.config import TrainAdapterConfig

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from prefect.client.schemas.objects import FlowRun

pytestmark = pytest.mark.slow

DEPLOYMENT = "train-adapter/every-setting"
QUICK = "train-adapter/quick"


@pytest.fixture(scope="module")
def program() -> str:
    """Return the browser's program; skip where there is none."""
    found = browser()
    if not found:
        pytest.skip("no chromium is installed")
    return found


@pytest.fixture(scope="module")
def stack(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start a stack once for this module."""
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    try:
        running.up()
        yield running
    finally:
        running.command("down")


@pytest.fixture
def page(program: str) -> Iterator["Page"]:
    """Open a window of the browser."""
    with window(program) as page:
        yield page


def fill(page: "Page", title: str, value: str) -> None:
    """Write to the field under a title."""
    page.locator(f"xpath=//*[normalize-space(text())='{title}']/following::textarea[1]").fill(value)


def submitted(page: "Page", stack: RunningStack, deployment: str = DEPLOYMENT) -> list["FlowRun"]:
    """Submit the form, and give the run; a click that a page just being made lost is repeated."""
    button = page.get_by_role("button", name="Submit")
    if not stack.runs_of(deployment) and button.is_visible():
        button.click()
        page.wait_for_timeout(10_000)
    return stack.runs_of(deployment)


def scrolls_sideways(page: "Page") -> bool:
    """Return whether some of the page is to the right of the window."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    return wide


def test_the_short_form_is_six_fields_and_a_run_of_what_they_say(
    stack: RunningStack, page: "Page", tiny_base: Path, tmp_path: Path
) -> None:
    """At 1280 pixels all are seen without scrolling sideways; base and data are empty."""
    deployment = stack.deployment(QUICK)
    page.goto(f"{stack.prefect_url}/deployments/deployment/{deployment.id}/run")
    fill(page, "Base model", str(tiny_base))
    fill(page, "Data", str(sums(tmp_path / "sums.jsonl")))
    titles = ["Held-out data or share (Optional)", "Adapter name (Optional)"]
    titles += ["Epochs (Optional)", "Experiment (Optional)"]
    for title in ("Base model", "Data", *titles):
        seen = page.locator(f"xpath=//*[normalize-space(text())='{title}']").first
        box = seen.bounding_box()
        assert box, title
        assert box["x"] + box["width"] <= page.viewport_size["width"], title  # type: ignore[index]
    assert not scrolls_sideways(page)
    fill(page, titles[0], "25 %")
    fill(page, titles[1], "short")
    fill(page, titles[3], "short-form")
    run = wait_until(lambda: submitted(page, stack, QUICK), "the run that the form starts")[0]
    assert run.parameters["config"] == {
        "base": str(tiny_base),
        "train": str(tmp_path / "sums.jsonl"),
        "held_out": "25 %",
        "adapter_name": "short",
        "epochs": 1,
        "experiment": "short-form",
    }
    ended = stack.ended(run)
    assert ended.state
    assert ended.state.name == "Completed", ended.state.message
    # The run may have started, and so have its full name, before it was first read.
    assert ended.name == f"short-sums-{run.name.removeprefix('short-sums-')}"


def test_a_person_fills_in_the_form_and_sees_the_run_through(
    stack: RunningStack, page: "Page", tiny_base: Path, tmp_path: Path
) -> None:
    """From the form to the six steps, the report with the loss curve, and MLflow's page."""
    deployment = stack.deployment(DEPLOYMENT)
    page.goto(f"{stack.prefect_url}/deployments/deployment/{deployment.id}/run")
    fill(page, "Source", str(tiny_base))
    fill(page, "Train", str(sums(tmp_path / "sums.jsonl")))
    run = wait_until(lambda: submitted(page, stack), "the run that the form starts")[0]
    config = run.parameters["config"]
    assert config["base_model"]["source"] == str(tiny_base)
    filled = {"base_model": {"source": str(tiny_base)}, "data": {"train": config["data"]["train"]}}
    assert TrainAdapterConfig.model_validate(config) == TrainAdapterConfig.model_validate(filled)

    stack.ended(run)
    open_prefect_run(page, stack, run)
    link = open_report(page)
    assert link.startswith(f"{stack.mlflow_url}/#/experiments/")
    open_mlflow_run(page, link)


def test_the_newer_pages_have_the_form_too(stack: RunningStack, page: "Page") -> None:
    """Prefect's second UI shows the sections by their titles, in the order of the work."""
    deployment = stack.deployment(DEPLOYMENT)
    page.goto(f"{stack.prefect_url}/v2/deployments/deployment/{deployment.id}/run")
    page.get_by_text("Base model", exact=True).first.wait_for()
    said = page.inner_text("body")
    headings = re.findall(r"\n(Base model|Data|LoRA|Training)(?: \(Optional\))?\s*\n", said)
    assert headings == ["Base model", "Data", "LoRA", "Training"]
    assert "BaseModelSettings" not in said


def test_pages_ask_no_other_host(stack: RunningStack, page: "Page") -> None:
    """The UI that opens at the server's address makes requests to our servers alone."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    page.goto(stack.prefect_url)
    page.get_by_text("Automations").first.wait_for()
    page.wait_for_timeout(3000)  # what the page asks for once it is drawn
    hosts = {urlsplit(url).hostname for url in asked if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
