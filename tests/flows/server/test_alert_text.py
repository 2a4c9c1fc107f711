"""The command that an alert names, as Prefect renders it."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.server.utilities.user_templates import render_user_template
from prefect.states import Failed

from flows.server.automations import failed_runs
from tasks.tracking import SET_TAG


def text_about(flow: str, run_id: str, config: dict[str, Any]) -> str:
    """Return the text of the alert about a failed run."""
    payload: Any = failed_runs(uuid4()).model_dump()["actions"][0]["payload"]
    run = FlowRun.model_validate(
        {
            "id": run_id,
            "name": "run-1",
            "flow_id": uuid4(),
            "state": Failed(message="no luck"),
            "parameters": {"config": config},
        }
    )
    given = {"flow_run": run, "flow": Flow.model_validate({"id": run.flow_id, "name": flow})}
    # The run's page is not what is tested here.
    template = payload.replace("flow_run | ui_url", "flow_run.name")
    return str(json.loads(asyncio.run(render_user_template(template, given)))["text"])


@pytest.mark.parametrize("tracking", [{}, None, {"tags": {"team": "a"}}])
@pytest.mark.parametrize("flow", ["train-adapter", "train-variants", "retrain-adapter"])
def test_a_failed_run_is_resumed_by_its_id(flow: str, tracking: dict[str, Any] | None) -> None:
    """A training, a retraining and a set of variants are each resumed as themselves."""
    run_id = str(uuid4())
    told = text_about(flow, run_id, {"tracking": tracking})
    assert told == (
        f"{flow}: the run run-1 is Failed: no luck; to resume: adapterflow resume {run_id}"
    )


def test_a_failed_variant_is_resumed_with_its_set() -> None:
    """A variant's alert names the set: the variant alone would leave the set failed."""
    set_id = str(uuid4())
    told = text_about("train-adapter", str(uuid4()), {"tracking": {"tags": {SET_TAG: set_id}}})
    assert told.endswith(f"; to resume: adapterflow resume {set_id}")


def test_a_quick_training_is_resumed_by_its_id() -> None:
    """The short form's settings have no section for tags."""
    run_id = str(uuid4())
    told = text_about("train-adapter", run_id, {"base": "org/base", "train": "rows.jsonl"})
    assert told.endswith(f"; to resume: adapterflow resume {run_id}")
