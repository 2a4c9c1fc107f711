"""The flow runs of a set's variants in Prefect: created once, found again, cancelled."""

import time
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as this_run
from prefect.states import AwaitingRetry, Cancelled, Pending, to_state_create

from flows.train_adapter import train_adapter
from tasks.config import TrainAdapterConfig, TrainVariantsConfig
from tasks.durability.run_names import full_name
from tasks.durability.shared_storage import storage_tag
from tasks.records import ReportRecord, RunRecord, VariantRecord, variants_in
from tasks.tracking import PARENT_TAG, SET_TAG, VARIANT_TAG, mlflow_run_id
from tasks.variants.expansion import variant_config

NOT_SCHEDULED = "NotScheduled"
"""The state of a deployment's run that no worker takes yet."""
STOPPED = "the set of variants was stopped"
"""Why a variant is cancelled, unless it is cancelled alone."""
_SECONDS_TO_CANCEL = 8.0
_RUNS_AT_ONCE = 200
"""Prefect's limit for an answer."""


def config_of(
    config: TrainAdapterConfig, variant: VariantRecord, run: RunRecord
) -> TrainAdapterConfig:
    """Return the configuration of a variant's flow run: `train` makes the same adapter of it.

    Only where files go and how the MLflow run is found is the set's affair.
    """
    alone = variant_config(config, variant)
    name = alone.tracking.run_name
    tags = {**alone.tracking.tags, VARIANT_TAG: variant.name, SET_TAG: run.flow_run_id}
    is_file = run.tracking_uri.startswith("sqlite")  # of this home, which others may lack
    tracking = {
        "uri": run.tracking_uri if is_file else alone.tracking.uri,
        "tags": tags,
        "run_name": f"{name}-{variant.name}" if name else None,
    }
    if parent := mlflow_run_id(run):
        tags[PARENT_TAG] = parent
    return alone.model_copy(
        update={
            "output": alone.output.model_copy(
                update={"folder": str(variants_in(run.folder)), "keep_runs": None}
            ),
            "tracking": alone.tracking.model_copy(update=tracking),
        }
    )


def read_runs(client: SyncPrefectClient, flow_run_ids: Iterable[UUID]) -> Iterator[FlowRun]:
    """Yield flow runs as Prefect has them, in any order."""
    ids = list(flow_run_ids)
    for start in range(0, len(ids), _RUNS_AT_ONCE):
        some = ids[start : start + _RUNS_AT_ONCE]
        wanted = FlowRunFilter.model_validate({"id": {"any_": some}})
        yield from client.read_flow_runs(flow_run_filter=wanted, limit=_RUNS_AT_ONCE)


class VariantRuns:
    """The flow runs of the set that this flow run is.

    Args:
        client: of Prefect.
        config: of the set.
        run: the set's.
        deployment_id: the deployment that the runs are of, if its workers execute them.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        config: TrainVariantsConfig,
        run: RunRecord,
        deployment_id: UUID | None = None,
    ) -> None:
        self._client, self._alone, self._run = client, config.alone, run
        self._deployment_id = deployment_id
        self._flow_id = client.create_flow(train_adapter)

    def create(self, variant: VariantRecord) -> FlowRun:
        """Create a variant's flow run, or find it again: there is one for each name."""
        config = config_of(self._alone, variant, self._run)
        given: dict[str, Any] = {
            "name": full_name(config, f"{this_run.get_name()}-{variant.name}"),
            "parameters": {"config": config.model_dump(mode="json")},
            "tags": ["adapterflow-variant"],
            "parent_task_run_id": self._place_of(variant),
            "idempotency_key": f"{self._run.flow_run_id}-{variant.name}",
        }
        if self._deployment_id:
            given["tags"].append(storage_tag(self._run.flow_run_id))
            return self._client.create_flow_run_from_deployment(
                self._deployment_id, state=Pending(name=NOT_SCHEDULED), **given
            )
        alone = FlowRunCreate(flow_id=self._flow_id, state=to_state_create(Pending()), **given)
        answer = self._client.request(
            "POST", "/flow_runs/", json=alone.model_dump(mode="json", exclude_unset=True)
        )
        return FlowRun.model_validate(answer.json())

    def _place_of(self, variant: VariantRecord) -> UUID:
        """Return the task run by which Prefect shows a variant's flow run below the set's."""
        task: Task[[VariantRecord], None] = Task(_train_variant, name="train_variant")
        made = self._client.create_task_run(
            task=task,
            flow_run_id=UUID(self._run.flow_run_id),
            dynamic_key=variant.name,
            name=variant.name,
            state=Pending(),
        )
        return made.id

    def report(self, flow_run_id: UUID) -> ReportRecord | str:
        """Return a run's report, or why there is none; for a set that was interrupted, it is none.

        A report whose files are missing or changed counts as none: its run is to be repeated.
        """
        state = self._client.read_flow_run(flow_run_id).state
        if state is None or not state.is_final():
            return "it has not ended"
        if not state.is_completed():
            return state.message or f"the run ended as {state.name}"
        report = _result(state)
        if report is None:
            return "its result can't be read"
        if spoiled := report.spoiled_files():
            return f"{spoiled[0]} is missing or has changed"
        return report

    def reopen(self, flow_run_id: UUID) -> None:
        """Let a run that ended be executed again; its completed steps are not repeated.

        The run of a deployment is left to its place, which schedules it for a worker.
        """
        if self._deployment_id:
            return
        state = self._client.read_flow_run(flow_run_id).state
        if state is not None and not (state.is_pending() or state.is_scheduled()):
            self._client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)

    def cancel(self, flow_run_ids: Iterable[UUID]) -> None:
        """Cancel the runs that have not ended, as far as there is time."""
        deadline = time.monotonic() + _SECONDS_TO_CANCEL
        for run in read_runs(self._client, flow_run_ids):
            if time.monotonic() > deadline:
                return
            if run.state and (not run.state.is_final() or run.state.is_crashed()):
                cancelled: State[None] = Cancelled(message=STOPPED)
                self._client.set_flow_run_state(run.id, cancelled, force=True)


def _train_variant(variant: VariantRecord) -> None:
    """Stand for a variant's flow run among the tasks of the set's."""


def _result(state: State[ReportRecord]) -> ReportRecord | None:
    try:
        found = state.result(raise_on_failure=False)
    except Exception:  # noqa: BLE001 - missing, or of another version
        return None
    return found if isinstance(found, ReportRecord) else None
