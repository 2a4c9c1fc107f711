"""Runs of the training flow on a tiny base, for the tests of what a run leaves behind."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, TaskRun

from tasks.config import TrainAdapterConfig
from tasks.durability.run_folder import run_folder
from tasks.durability.step_name import StepName

OBSTACLES = {
    StepName.INJECT_ADAPTER: "initial",
    StepName.SAVE_ADAPTER: "adapters/.default.partial",
}
"""Below the run's folder, where a step makes a folder for what it writes."""


def sums(file: Path, count: int = 24) -> Path:
    """Write a file of small sums to learn from."""
    rows = ({"prompt": f"What is {i} plus {i}?", "completion": str(2 * i)} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tiny_config(base: Path, data: Path, **sections: dict[str, object]) -> TrainAdapterConfig:
    """Configure two passes over a file of sums; sections change single settings."""
    settings: dict[str, dict[str, object]] = {
        "base_model": {"source": str(base), "hub_id": "tests/tiny-llama", "dtype": "float32"},
        "data": {"train": str(data), "eval_fraction": 0.25},
        "lora": {"r": 8},
        "training": {"batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2},
        "inference": {"sample_rows": 3, "max_new_tokens": 4},
    }
    for name, changed in sections.items():
        settings[name] = {**settings.get(name, {}), **changed}
    return TrainAdapterConfig.model_validate(settings)


def folder_of(run: FlowRun) -> Path:
    """Return the folder that a run of the training flow writes to."""
    config = TrainAdapterConfig.model_validate(run.parameters["config"])
    return run_folder(config, run.name, str(run.id))


@contextmanager
def unwritable(run: FlowRun, step: StepName) -> Iterator[Path]:
    """Make a step of a run fail: a plain file, which is yielded, is where its folder has to go."""
    obstacle = folder_of(run) / OBSTACLES[step]
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.touch()
    try:
        yield obstacle
    finally:
        obstacle.unlink(missing_ok=True)


@contextmanager
def mended(run: FlowRun, task: str, mend: Callable[[], object]) -> Iterator[None]:
    """Remove the cause of a failure beside a run, once a task of the run has failed from it."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = task_run(run, task)
            if found and found.state and (found.state.is_failed() or found.state.is_scheduled()):
                mend()
                return
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        watching.join()


def task_run(run: FlowRun, task: str) -> TaskRun | None:
    """Return what Prefect knows of a task of a run."""
    of_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=of_run)
    return next((one for one in found if one.name == task), None)
