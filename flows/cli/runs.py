"""Flow runs of the training flows in this process: created, reopened, executed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from prefect.utilities.names import generate_slug
from pydantic import ValidationError

from flows.cli.run_list import note_end, note_start
from flows.quick_training import quick_training
from flows.retrain_adapter import retrain_adapter
from flows.train_adapter import train_adapter
from flows.train_variants import train_variants
from flows.variants.places import check_place
from tasks.config import (
    QuickTraining,
    RetrainAdapterConfig,
    TrainAdapterConfig,
    TrainVariantsConfig,
)
from tasks.config.mistakes import validation_message
from tasks.durability.redo import ask
from tasks.durability.run_folder import run_folder
from tasks.durability.run_lock import is_alive
from tasks.durability.run_names import full_name
from tasks.durability.step_name import StepName
from tasks.errors import AdapterflowError, UserError
from tasks.inference.variant_sets import lost_adapters, read_set
from tasks.records import ReportRecord, RetrainedRecord, VariantsRecord
from tasks.runtime import home
from tasks.runtime.progress import logger

_FLOWS: dict[type[TrainAdapterConfig | QuickTraining], Flow[..., Any]] = {
    TrainAdapterConfig: train_adapter,
    QuickTraining: quick_training,
    RetrainAdapterConfig: retrain_adapter,
    TrainVariantsConfig: train_variants,
}
"""The flow that each kind of configuration is for."""


class RefusedSettingsError(UserError):
    """A run was begun with settings that this version refuses."""


@contextmanager
def _asking_prefect() -> Iterator[None]:
    """Raise an AdapterflowError where the Prefect server is lost, or answers with an error."""
    try:
        yield
    except httpx.HTTPError as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise AdapterflowError(
            f"the Prefect server failed: {problem}; see its log, and start again"
        ) from error


@_asking_prefect()
def create_run(config: TrainAdapterConfig, **parameters: object) -> FlowRun:
    """Create a run of the configuration's flow; with its id, any later failure can be resumed."""
    given = {"config": config.model_dump(mode="json"), **parameters}
    with get_client(sync_client=True) as client:
        name = full_name(config, generate_slug(2))
        created = client.create_flow_run(_FLOWS[type(config)], name=name, parameters=given)
    note_start(str(created.id), run_folder(config, str(created.name), str(created.id)))
    return created


@_asking_prefect()
def reopen_run(flow_run_id: UUID, redo_from: StepName | None = None) -> FlowRun:
    """Reopen a run that ended, so that it can be resumed.

    Args:
        flow_run_id: the run.
        redo_from: the first step to run again, if any.

    A set of variants that completed is reopened if adapters are missing since.

    Raises:
        UserError: there is no such run, it is executing elsewhere, it completed and nothing is to
            be redone, this version refuses its settings, or the place of a set can't be reached.
    """
    with get_client(sync_client=True) as client:
        try:
            flow_run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            raise UserError(f"there is no run {flow_run_id} in this home's Prefect") from None
        is_complete = flow_run.state and flow_run.state.is_completed()
        if is_complete and redo_from is None and not _lacks_adapters(client, flow_run):
            raise UserError(
                f"the run {flow_run_id} has completed; start a new one, or add --redo-from STEP"
            )
        kind, _ = _of(client, flow_run)
        config = _checked(kind, flow_run)
        folder = run_folder(config, str(flow_run.name), str(flow_run_id))
        if is_alive(folder):
            raise UserError(f"the run {flow_run.name} is active in another process")
        if redo_from and kind is TrainVariantsConfig:
            raise UserError(
                f"the run {flow_run.name} is a set of variants, which has no step "
                f"{redo_from}; resume it without --redo-from, or redo one variant by the id of its "
                "run"
            )
        if redo_from:
            ask(folder, redo_from)
        if isinstance(config, TrainVariantsConfig):
            check_place(config)
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
        note_start(str(flow_run_id), folder)
        return client.read_flow_run(flow_run_id)


def _lacks_adapters(client: SyncPrefectClient, flow_run: FlowRun) -> bool:
    """Return whether a run is a set of variants that has lost adapters since it completed."""
    kind, _ = _of(client, flow_run)
    if kind is not TrainVariantsConfig:
        return False
    folder = run_folder(_checked(kind, flow_run), str(flow_run.name), str(flow_run.id))
    try:
        return bool(lost_adapters(read_set(folder), folder))
    except UserError:  # the manifest is gone, and with it what there was
        return False


@_asking_prefect()
def reopen_last(flow_run_ids: Sequence[UUID], redo_from: StepName | None = None) -> FlowRun:
    """Reopen the first of these runs that did not complete, so that it can be resumed.

    A process killed after its run completed, but before that was noted in the home's list, leaves
    the run there as if interrupted: the note is added here. Runs that this Prefect does not know
    are skipped, and those that this version refuses, with a warning.

    Raises:
        UserError: all known runs completed, or none is known, or those that are left are refused.
    """
    num_completed, refused = 0, None
    for flow_run_id in flow_run_ids:
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            state = client.read_flow_run(flow_run_id).state
            try:
                if not (state and state.is_completed()):
                    return reopen_run(flow_run_id, redo_from)
            except RefusedSettingsError as mistake:
                logger().warning("passed over: %s", mistake)
                refused = mistake
                continue
            note_end(str(flow_run_id))
            num_completed += 1
    if refused:
        raise refused
    raise UserError(
        f"no run of {home.home()} was interrupted: {num_completed} completed, "
        f"{len(flow_run_ids) - num_completed} are not in this Prefect; give the id or name of a run"
    )


def folder_of(flow_run: FlowRun) -> Path:
    """Return the folder that a run of one of these flows writes to."""
    with get_client(sync_client=True) as client:
        kind, _ = _of(client, flow_run)
        named = client.read_flow_run(flow_run.id)
    return run_folder(_checked(kind, named), str(named.name), str(named.id))


def _checked(
    kind: type[TrainAdapterConfig | QuickTraining], flow_run: FlowRun
) -> TrainAdapterConfig:
    given = flow_run.parameters["config"]
    try:
        config = kind.model_validate(given)
        return config.expanded() if isinstance(config, QuickTraining) else config
    except ValidationError as error:
        mistakes = validation_message(kind, error, given)
        raise RefusedSettingsError(
            f"the run {flow_run.id} was started with settings that this version refuses; start a "
            f"new one: {mistakes}"
        ) from None


def execute(flow_run: FlowRun) -> ReportRecord:
    """Execute a training on this thread, which must be the main one, and return its report.

    Raises:
        UserError: the input cannot work.
        Exception: the error that made the run fail.
    """
    report = execute_any(flow_run)
    assert isinstance(report, ReportRecord)  # noqa: S101 - the flow has no other result
    return report


def execute_any(flow_run: FlowRun) -> ReportRecord | RetrainedRecord | VariantsRecord:
    """Execute a training, a retraining or a set of variants; see `execute`."""
    with get_client(sync_client=True) as client:
        _, flow = _of(client, flow_run)
    try:
        record = run_flow(flow, flow_run=flow_run)
    except UserError:
        note_end(str(flow_run.id))
        raise
    assert isinstance(record, ReportRecord | RetrainedRecord | VariantsRecord)  # noqa: S101 - no other results
    note_end(str(flow_run.id))
    return record


def _of(
    client: SyncPrefectClient, flow_run: FlowRun
) -> tuple[type[TrainAdapterConfig | QuickTraining], Flow[..., Any]]:
    """Return the configuration and the flow of a run; two flows of one name differ in the former.

    Raises:
        UserError: the run is of another flow.
    """
    name = client.read_flow(flow_run.flow_id).name
    found = [(kind, flow) for kind, flow in _FLOWS.items() if flow.name == name]
    if not found:
        possible = ", ".join(dict.fromkeys(flow.name for flow in _FLOWS.values()))
        raise UserError(f"the run is of the flow {name!r}; only those of {possible} are resumed")
    given = set(flow_run.parameters.get("config", {}))
    return next((one for one in found if given <= one[0].model_fields.keys()), found[0])
