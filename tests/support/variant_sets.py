"""Sets of variants on a tiny base, for tests: their configuration, rows, flow runs, processes."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import pytest
import yaml
from flow_runs import tiny_config
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings
from prefect.states import Cancelling

from flows.cli.run_list import unfinished_runs
from tasks.config import TrainVariantsConfig
from tasks.tracking import recorded_runs

SECONDS = 600
"""That a test waits for something at most, on a busy machine."""

T = TypeVar("T")


def set_config(
    base: Path, data: Path, variants: dict[str, Any], **sections: dict[str, object]
) -> TrainVariantsConfig:
    """Configure a set; sections change single settings of all variants."""
    alone = tiny_config(base, data, **sections)
    return TrainVariantsConfig.model_validate(
        {**alone.model_dump(mode="json"), "variants": variants}
    )


def written(config: TrainVariantsConfig, file: Path) -> Path:
    """Write a configuration for the command line."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return file


def variant_runs(set_run_id: UUID) -> list[FlowRun]:
    """Return the flow runs of a set's variants, as Prefect has them."""
    below = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [set_run_id]}})
    with get_client(sync_client=True) as client:
        return list(client.read_flow_runs(flow_run_filter=below, limit=200))


def completed_steps(runs: list[FlowRun]) -> dict[UUID, Counter[str]]:
    """Count by run how often each step ran to its end, without records that were found."""
    wanted = TaskRunFilter.model_validate({"state": {"name": {"any_": ["Completed"]}}})
    counts: dict[UUID, Counter[str]] = {}
    with get_client(sync_client=True) as client:
        for run in runs:
            of_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
            found = client.read_task_runs(flow_run_filter=of_run, task_run_filter=wanted, limit=200)
            counts[run.id] = Counter(one.name for one in found)
    return counts


def started(request: pytest.FixtureRequest, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start the command line in a new process, with this one's Prefect server."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("adapterflow"), *map(str, arguments)],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    request.addfinalizer(process.kill)
    return process


def begun() -> UUID | None:
    """Return the run that this home's command line has started."""
    return next(map(UUID, unfinished_runs()), None)


def cancel_one(set_run_id: UUID, process: "subprocess.Popen[bytes]") -> UUID:
    """Cancel a variant once it is in MLflow, too, as Prefect's pages do; return its run."""
    outputs = Path(os.environ["ADAPTERFLOW_HOME"]) / "outputs"

    def active() -> list[UUID]:
        found = recorded_runs([outputs])
        begun = {one.run.flow_run_id for one in found if one.status == "RUNNING"}
        runs = [run for run in variant_runs(set_run_id) if str(run.id) in begun]
        return [run.id for run in runs if run.state and run.state.is_running()]

    run_id = waited_for(active, process)[0]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelling())
    return run_id


def workers(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the processes that train variants for another one."""
    found = psutil.Process(process.pid).children()
    return [one for one in found if "flows.variants.worker" in one.cmdline()]


def all_ended(processes: Iterable[psutil.Process]) -> bool:
    """Return whether processes have ended, reaped or not."""
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


def waited_for(
    condition: Callable[[], T | None], process: "subprocess.Popen[bytes] | None" = None
) -> T:
    """Wait until something is, while a process is active."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert process is None or process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found
