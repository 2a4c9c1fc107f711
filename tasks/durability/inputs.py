"""The inputs of a step as part of its cache key, wherever its run is recorded.

A run may be resumed with another address of MLflow, such as that of a server which serves the same
store. Its records are as valid as before.
"""

from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import INPUTS, CachePolicy
from prefect.context import TaskRunContext

from tasks.records import RunRecord


@dataclass
class InputsOfStep(CachePolicy):
    """Make a step's inputs part of its cache key, except MLflow's address."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,  # noqa: ANN401 - Prefect's signature
    ) -> str | None:
        """Return the sha256 of the inputs."""
        what_counts = {name: _without_address(value) for name, value in inputs.items()}
        return INPUTS.compute_key(task_ctx, what_counts, flow_parameters, **kwargs)


def _without_address(value: object) -> object:
    return value.model_copy(update={"tracking_uri": ""}) if isinstance(value, RunRecord) else value
