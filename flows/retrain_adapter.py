"""The retraining flow: checked data, the six steps, a comparison, a decision, its consequence."""

from contextlib import ExitStack
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.server.approval import approved, check_can_wait
from flows.train_adapter import six_steps
from tasks.config import RetrainAdapterConfig
from tasks.durability.device_slot import device_slot
from tasks.durability.kept_results import RecordSerializer, keep_results_atomically
from tasks.durability.redo import redoing
from tasks.durability.run_names import namer
from tasks.durability.step_name import StepName
from tasks.durability.tracked_run import being_alive, tracked_run
from tasks.engine.base import bases_on_host
from tasks.errors import UserError
from tasks.launching import num_gpus_here
from tasks.records import (
    CheckedRecord,
    DecisionRecord,
    InputsRecord,
    Outcome,
    PublishedRecord,
    RetrainedRecord,
    RunRecord,
    VersionRecord,
)
from tasks.retraining.check_retraining import check_retraining, is_outdated
from tasks.retraining.comparison_report import proposal
from tasks.retraining.decide_promotion import decide_promotion
from tasks.retraining.evaluate_adapter import evaluate_adapter
from tasks.retraining.evaluate_harness import evaluate_harness
from tasks.retraining.find_champion import beginning_with, find_champion
from tasks.retraining.promote_adapter import promote_adapter
from tasks.retraining.publish_adapter import publish_adapter, publish_command
from tasks.retraining.publish_comparison import publish_comparison
from tasks.retraining.register_adapter import register_adapter
from tasks.runtime.progress import logger
from tasks.runtime.run_log import prepare_run_log
from tasks.tracking import is_begun
from tasks.validate_inputs import validate_inputs


@flow(
    name="retrain-adapter",
    flow_run_name=namer(RetrainAdapterConfig),
    persist_result=True,
    result_serializer=RecordSerializer(),
)
def retrain_adapter(
    config: RetrainAdapterConfig,
    force: bool = False,  # noqa: FBT001, FBT002 - a switch of the form
    redo_from: StepName | None = None,
) -> State[RetrainedRecord]:
    """Train a new adapter, and promote it if it is shown to be better than the champion.

    Args:
        config: the base, the examples, the settings, and what the new adapter must prove.
        force: train even if base, data and configuration are those of an earlier version; the
            result is then not promoted.
        redo_from: in a resumed run, run this of the six steps and those after it again.
    """
    prepare_run_log()
    keep_results_atomically()
    try:
        if config.decision.approval:
            check_can_wait()
        with being_alive(config) as folder, ExitStack() as device:
            inputs, checked = _checked(config, folder)
            if checked.unchanged_since is not None and not force:
                return _completed(_skipped(config, checked))
            device.enter_context(device_slot(num_gpus_here(config.launch)))
            # The run that had the device before may just have made a champion.
            if not is_begun(folder) and is_outdated(checked, config, inputs):
                inputs, checked = _checked(config, folder, anew=True)
                if checked.unchanged_since is not None and not force:
                    return _completed(_skipped(config, checked))
            return _completed(_retrained(config, inputs, checked, redo_from, device))
    except UserError as mistake:
        # As the state's message it is what the UI shows: the user needs no traceback.
        return Failed(message=str(mistake), data=mistake)


def _checked(
    config: RetrainAdapterConfig, folder: Path, *, anew: bool = False
) -> tuple[InputsRecord, CheckedRecord]:
    """Validate the inputs, and check them beside what the registry has.

    Args:
        config: of the retraining.
        folder: the run's.
        anew: whether to ask the registry again, although a record has what it answered.
    """
    begun = config
    if config.registry.continue_champion:
        find = find_champion.again if anew else find_champion
        begun = beginning_with(find(config.registry, config.tracking), config)
    inputs = validate_inputs(begun, folder)
    check = check_retraining.again if anew else check_retraining
    return inputs, check(config, inputs)


def _completed(record: RetrainedRecord) -> State[RetrainedRecord]:
    """Return a completed state whose message is the decision on the adapter."""
    name = "Skipped" if record.decision.outcome is Outcome.SKIP else None
    return Completed(name=name, message=record.decision.reason, data=record)


def _skipped(config: RetrainAdapterConfig, checked: CheckedRecord) -> RetrainedRecord:
    decision = DecisionRecord(
        outcome=Outcome.SKIP,
        reason=f"skipped: base, data and configuration are those of version "
        f"{checked.unchanged_since} of {config.registry.name}",
        metric=config.decision.metric,
        num_rows=checked.num_rows,
    )
    logger().info(decision.reason)
    return RetrainedRecord(checked=checked, decision=decision)


def _retrained(
    config: RetrainAdapterConfig,
    inputs: InputsRecord,
    checked: CheckedRecord,
    redo_from: StepName | None,
    device: ExitStack,
) -> RetrainedRecord:
    data = inputs.data
    with tracked_run(config, inputs) as run, redoing(run, redo_from):
        report = six_steps(config, inputs, run)
        saved = report.saved
        version = register_adapter(saved, data, checked, config.registry, run)
        with bases_on_host(needed=config.launch.shards):
            evaluated = evaluate_adapter(
                saved, version, checked, config.evaluation, config.decision.older, config.data, run
            )
            if config.evaluation.harness:
                found = evaluate_harness(saved, checked, config.evaluation.harness, run)
                evaluated = evaluated.model_copy(update={"harness": found})
        # The next run may use the device: an approval can take hours.
        device.close()
        decision = decide_promotion(evaluated, checked, config.decision, config.seed, run)
        approval = config.decision.approval
        if approval and decision.outcome is Outcome.PROMOTE:
            publish_comparison(evaluated, decision, checked, run, is_proposal=True)
            asked = proposal(evaluated, decision, checked, approval)
            decision = approved(decision, asked, approval)
        decision = promote_adapter(version, evaluated, decision, checked, run)
        publish_comparison(evaluated, decision, checked, run)
        published = _published(config, decision, version, run)
    return RetrainedRecord(
        checked=checked,
        decision=decision,
        run=run,
        report=report,
        evaluated=evaluated,
        version=version,
        published=published,
    )


def _published(
    config: RetrainAdapterConfig, decision: DecisionRecord, version: VersionRecord, run: RunRecord
) -> PublishedRecord | None:
    """Publish a promoted version; whatever prevents that, the promotion stands."""
    if config.serving.url is None or decision.outcome is not Outcome.PROMOTE:
        return None
    try:
        published: PublishedRecord = publish_adapter(version, config.serving, run)
    except Exception as error:  # noqa: BLE001 - the promotion is done
        later = publish_command(version.uri, config.serving, config.tracking.uri)
        logger().warning("%s is not published: %s; to publish it: %s", version.uri, error, later)
        return None
    return published
