"""A retraining as an approver meets it in a browser 1280 pixels wide: form, reports, curves."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import Artifact, FlowRun
from retraining_runs import retraining
from running_stack import RunningStack, wait_until
from screenshots import browser, cut_off, open_mlflow_run, window

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

_LONG = "Please look at the following question very closely before you answer it in one number."
_REPORT, _FORM = ".artifact", ".p-modal__card"


class Asked(NamedTuple):
    """A retraining that waits for its approval."""

    stack: RunningStack
    run: FlowRun
    command: "subprocess.Popen[str]"


def rows(file: Path, numbers: range) -> Path:
    """Write sums whose prompts are wider than any page."""
    lines = (
        {"prompt": f"{_LONG} {_LONG} What is {n} plus {n}?", "completion": str(2 * n)}
        for n in numbers
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def asked(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Start a stack, and in it a retraining that asks for approval, as from a terminal."""
    if not browser():
        pytest.skip("no chromium is installed")
    folder = tmp_path_factory.mktemp("pages")
    stack = RunningStack(folder)
    data = {"train": str(rows(folder / "rows.jsonl", range(24)))}
    config = retraining(
        tiny_base,
        folder,
        "asked",
        data=data,
        inference={"sample_rows": 3, "max_new_tokens": 4},
        decision={"approval": {}},
    )
    file = folder / "config.yaml"
    file.write_text(config.model_dump_json())
    try:
        stack.up()
        stack.environment["PREFECT_API_URL"] = f"{stack.prefect_url}/api"
        stack.environment["PREFECT_UI_URL"] = stack.prefect_url
        stack.environment["MLFLOW_TRACKING_URI"] = stack.mlflow_url
        command = stack.begin("retrain", str(file))
        yield Asked(stack, wait_until(lambda: paused(stack, command), "the question"), command)
        command.terminate()
        command.communicate()
    finally:
        stack.command("down")


def paused(stack: RunningStack, command: "subprocess.Popen[str]") -> FlowRun | None:
    """Return the run that waits, if there is one."""
    assert command.poll() is None, command.communicate()
    with stack.client() as client:
        found = client.read_flow_runs()
    return next((one for one in found if one.state and one.state.is_paused()), None)


def artifacts(asked: Asked) -> dict[str, Artifact]:
    """Return what the run has published, by key; of several versions the first."""
    wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": [str(asked.run.id)]}})
    with asked.stack.client() as client:
        return {str(one.key): one for one in client.read_artifacts(artifact_filter=wanted)}


@pytest.fixture
def page() -> Iterator["Page"]:
    """Open a window of the browser."""
    program = browser()
    assert program
    with window(program) as page:
        yield page


def open_artifact(page: "Page", asked: Asked, key: str) -> str:
    """Open the page of an artifact, and return its text once it is drawn."""
    found = artifacts(asked)[key]
    page.goto(f"{asked.stack.prefect_url}/artifacts/artifact/{found.id}")
    page.get_by_text(key, exact=True).first.wait_for()
    page.get_by_text("Show raw data").wait_for()
    return page.inner_text(_REPORT)


def in_order(text: str, *parts: str) -> bool:
    """Return whether a text has these parts, each after the one before."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def choose(page: "Page", option: str) -> None:
    """Choose an option in the form; the keyboard opens the list however the page was just drawn."""
    page.locator(f"{_FORM} .p-select-button__control").press("ArrowDown")
    page.locator(".p-select-option", has_text=option).first.click()
    page.locator(f"{_FORM} .p-select-button__value", has_text=option).wait_for()


def test_the_reports_are_read_without_scrolling_sideways(asked: Asked, page: "Page") -> None:
    """Result, curve, and each answer's texts one below the other; nothing is cut off."""
    text = open_artifact(page, asked, "adapter-report")
    assert in_order(text, " on 3 held-out rows: base ", "Answer 1", "Prompt", "Expected", "Numbers")
    curve = page.locator("img[alt='loss curve']").bounding_box()
    answer = page.get_by_text("Answer 1", exact=True).bounding_box()
    assert curve
    assert answer
    assert curve["y"] < answer["y"]
    assert cut_off(page, _REPORT) == []

    text = open_artifact(page, asked, "adapter-comparison")
    assert in_order(text, "Make it champion?", "loss (decides)", "rows got better", "About")
    assert cut_off(page, _REPORT) == []


def test_a_run_links_to_its_curves(asked: Asked, page: "Page") -> None:
    """The link was there before the training ended, and opens the losses before other curves."""
    found = artifacts(asked)
    assert found["mlflow-run"].created
    assert found["adapter-report"].created
    assert found["mlflow-run"].created < found["adapter-report"].created
    assert str(found["training-progress"].description).startswith("step 10 of 10 · loss ")
    open_artifact(page, asked, "mlflow-run")
    link = page.locator("a[href*='workflowType']").first.get_attribute("href")
    assert link
    open_mlflow_run(page, link)
    page.get_by_text("Model training").first.wait_for()
    drawn = " ".join(page.inner_text("body").split())
    assert in_order(drawn, "eval (1)", "loss", "train (1)", "loss")
    first = page.get_by_text("loss", exact=True).first.bounding_box()
    assert first
    assert first["y"] < 400  # seen at once
    assert not any(other in drawn for other in ("seconds", "memory", "evaluation ("))

    run_id = urlsplit(link).fragment.split("/runs/")[1].split("/")[0]
    run = MlflowClient(asked.stack.mlflow_url).get_run(run_id)
    assert "- **Data**: `rows.jsonl`, 18 rows" in run.data.tags["mlflow.note.content"]
    page.goto(f"{asked.stack.mlflow_url}/#/models/asked?workflowType=machine_learning")
    page.get_by_text("rows.jsonl").first.wait_for()


def test_the_approver_chooses_and_is_not_told_that_it_has_happened(
    asked: Asked, page: "Page"
) -> None:
    """The form asks, chooses nothing by itself, and takes no answer without a choice."""
    page.goto(f"{asked.stack.prefect_url}/runs/flow-run/{asked.run.id}")
    page.get_by_role("button", name="Resume").first.click()
    page.get_by_text("Make it champion?").wait_for()
    dialog = page.locator(_FORM)
    said = dialog.inner_text()
    assert in_order(
        said,
        "Better than the base: loss ",
        "Without an answer",
        "loss (decides)",
        "Decision",
        "Comment",
    )
    assert "romoted:" not in said
    assert cut_off(page, _FORM) == []
    dialog.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(2000)
    assert paused(asked.stack, asked.command)
    choose(page, "approve")
    dialog.locator("textarea").last.fill("Ada: good enough")
    dialog.get_by_role("button", name="Submit").click()
    dialog.wait_for(state="hidden")
    out, problem = asked.command.communicate(timeout=240)
    assert asked.command.returncode == 0, problem
    assert "promoted: loss " in out
    assert "approved in Prefect: Ada: good enough" in " ".join(out.split())
    model = MlflowClient(asked.stack.mlflow_url).get_registered_model("asked")
    assert "- **Approval**: approved in Prefect: Ada: good enough" in model.description
