"""Pages of a run in a browser: for the browser's tests, and as the pictures in the documentation.

`make screenshots` trains the demo's adapter in a stack of its own and takes the pictures again.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from running_stack import RunningStack, wait_until

from flows.server.deployment_parameters import read_parameters
from tasks.durability.step_name import StepName

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from prefect.client.schemas.objects import FlowRun

IMAGES = Path(__file__).parents[2] / "docs" / "images"
_WIDTH, _HEIGHT = 1280, 860
_SECONDS_TO_DRAW = 5
_MILLISECONDS_A_TRY = 40_000


def browser() -> str | None:
    """Return the browser's program; None if there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def window(program: str) -> Iterator["Page"]:
    """Open a window of the browser, without history or cookies."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root.
        running = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        page = running.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.set_default_timeout(120_000)
        yield page
        running.close()


def open_prefect_run(page: "Page", stack: RunningStack, run: "FlowRun") -> None:
    """Open Prefect's page of a completed run, with its six steps in the list below the timeline."""
    page.goto(f"{stack.prefect_url}/runs/flow-run/{run.id}")
    page.get_by_text("Completed", exact=True).first.wait_for()
    page.get_by_text("Task Runs", exact=True).click()
    for step in StepName:
        page.get_by_text(str(step), exact=True).first.wait_for()


def open_report(page: "Page") -> str:
    """Open the report from Prefect's page of a run; return the report's link to MLflow."""
    address = page.url
    wait_until(lambda: _is_report_open(page, address), "the report")
    link = page.get_by_role("link", name="The MLflow run").get_attribute("href")
    assert link
    return link


def _is_report_open(page: "Page", address: str) -> bool:
    """Try to open the report; a list that the page draws anew at that moment loses the click.

    What tasks published is listed below what the run did, and drawn once it is scrolled to.
    """
    from playwright.sync_api import TimeoutError as NotInTime

    try:
        page.get_by_text("Artifacts", exact=True).last.click(timeout=_MILLISECONDS_A_TRY)
        page.get_by_text("mlflow-run").last.wait_for(timeout=_MILLISECONDS_A_TRY)
        page.mouse.move(_WIDTH / 2, _HEIGHT - 50)
        page.mouse.wheel(0, 2 * _HEIGHT)
        page.get_by_text("adapter-report").first.click(timeout=_MILLISECONDS_A_TRY)
        page.locator("img[alt='loss curve']").wait_for(timeout=_MILLISECONDS_A_TRY)
    except NotInTime:
        page.goto(address)
        return False
    return True


def open_mlflow_run(page: "Page", link: str) -> None:
    """Open MLflow's page of a run, with the curves of its training.

    MLflow draws a chart once it is scrolled to; its assistant takes a quarter of the window.
    """
    page.goto(link)
    page.get_by_text("loss", exact=True).first.wait_for()
    assistant = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if assistant.is_visible():
        assistant.click()


def cut_off(page: "Page", selector: str) -> list[str]:
    """Return the texts within an element that are only seen by scrolling sideways, or never."""
    found: list[str] = page.locator(selector).first.evaluate(_CUT_OFF)
    return found


_CUT_OFF = """root => [root, ...root.querySelectorAll('*')].filter(one => {
    const box = one.getBoundingClientRect();
    const isHiding = getComputedStyle(one).overflowX !== 'visible' && one.clientWidth > 1;
    return (box.width > 1 && box.right > window.innerWidth + 1)
        || (isHiding && one.scrollWidth > one.clientWidth + 1);
}).map(one => one.tagName + ': ' + one.innerText.slice(0, 90))"""


def take_pictures(stack: RunningStack, run: "FlowRun", program: str) -> None:
    """Take the pictures of the documentation from a completed run."""
    IMAGES.mkdir(exist_ok=True)
    with window(program) as page:
        open_prefect_run(page, stack, run)
        _take(page, "prefect-run.png")
        open_mlflow_run(page, open_report(page))
        _take(page, "mlflow-run.png")


def _take(page: "Page", name: str) -> None:
    page.wait_for_timeout(_SECONDS_TO_DRAW * 1000)
    page.screenshot(path=IMAGES / name)


def _demo(stack: RunningStack) -> "FlowRun":
    """Train the demo's adapter through the deployment, with fewer sample answers."""
    deployment, file = "train-adapter/every-setting", "deployments/demo/tickets.yaml"
    config: dict[str, Any] = read_parameters("train-adapter", file)["config"]
    config["inference"] = {**config["inference"], "sample_rows": 25}
    return stack.ended(stack.start(deployment, {"config": config}), seconds=1800)


def main() -> None:
    """Train the demo's adapter in a stack of its own, and take the pictures."""
    program = browser()
    if not program:
        sys.exit("no chromium is installed")
    with tempfile.TemporaryDirectory() as folder:
        stack = RunningStack(Path(folder))
        try:
            stack.up()
            take_pictures(stack, _demo(stack), program)
        finally:
            stack.command("down")


if __name__ == "__main__":
    main()
