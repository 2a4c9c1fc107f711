"""What of its inputs a step's record is found by."""

from pathlib import Path

import pytest

from tasks.durability.inputs import InputsOfStep
from tasks.records import RunRecord

RUN = RunRecord(
    tracking_uri="sqlite:////home/mlruns/mlflow.db",
    experiment="e",
    run_name="r",
    flow_run_id="f",
    folder=Path("/home/outputs/r"),
)


def key_with(run: RunRecord) -> str | None:
    """Return the key's part for a step with this run and another input."""
    return InputsOfStep().compute_key(None, {"seed": 1, "run": run}, {})  # type: ignore[arg-type]


def test_a_run_that_is_resumed_with_another_mlflow_address_keeps_its_records() -> None:
    """A server of `adapterflow up` serves the store that the run began in."""
    assert key_with(RUN) == key_with(RUN.model_copy(update={"tracking_uri": "http://there:5000"}))


@pytest.mark.parametrize("changed", ["experiment", "run_name", "flow_run_id"])
def test_another_run_has_other_records(changed: str) -> None:
    """Everything else of the run counts."""
    assert key_with(RUN) != key_with(RUN.model_copy(update={changed: "other"}))
