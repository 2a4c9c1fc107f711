"""At the end of a retraining: carry out the decision, record it, and send its event."""

from uuid import UUID, uuid5

from prefect.events import Event, RelatedResource, Resource

from tasks.durability.step import step
from tasks.records import (
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    Outcome,
    RunRecord,
    VersionRecord,
)
from tasks.runtime import events
from tasks.runtime.progress import logger
from tasks.tracking import OUTCOME_TAG, REASON_TAG, Registry, Tracker


@step
def promote_adapter(
    version: VersionRecord,
    evaluated: EvaluatedRecord,
    decision: DecisionRecord,
    checked: CheckedRecord,
    run: RunRecord,
) -> DecisionRecord:
    """Make the version the champion if so decided, record the decision, and send its event.

    Returns the final decision: a champion that the version was not compared with is not replaced.

    Raises:
        PassingError: the registry or Prefect can't be reached.
    """
    registry = Registry(run.tracking_uri, version.name)
    former = checked.champion.version if checked.champion else None
    if decision.outcome is Outcome.PROMOTE and (no := registry.promote(version.version, former)):
        decision = decision.model_copy(update=no._asdict())
    registry.tag(version.version, _tags(evaluated, decision))
    Tracker(run).set_tags({OUTCOME_TAG: decision.outcome, REASON_TAG: decision.reason})
    events.send([_event(version, evaluated, decision, run)])
    logger().info("%s %s", version.uri, decision.reason)
    return decision


def _tags(evaluated: EvaluatedRecord, decision: DecisionRecord) -> dict[str, str]:
    scores = {
        f"score.{model.name}.{metric}": f"{value:.6g}"
        for model in evaluated.models
        for metric, value in model.scores.items()
    }
    return scores | {
        "decision.metric": decision.metric,
        "decision.num_rows": str(decision.num_rows),
        OUTCOME_TAG: decision.outcome.value,
        REASON_TAG: decision.reason,
    }


def _event(
    version: VersionRecord, evaluated: EvaluatedRecord, decision: DecisionRecord, run: RunRecord
) -> Event:
    """Return the event `adapterflow.adapter.promoted` or `.rejected`.

    Its id is a function of run and version, so that Prefect counts it once, however often sent.
    """
    is_promoted = decision.outcome is Outcome.PROMOTE
    event = f"adapterflow.adapter.{'promoted' if is_promoted else 'rejected'}"
    labels = {
        "prefect.resource.id": f"adapterflow.adapter.{version.name}",
        "prefect.resource.name": version.name,
    }
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{run.flow_run_id}",
        "prefect.resource.role": "flow-run",
    }
    return Event(
        event=event,
        resource=Resource(labels),
        related=[RelatedResource(flow_run)],
        payload={
            "version": version.version,
            "uri": version.uri,
            "reason": decision.reason,
            "scores": {model.name: model.scores for model in evaluated.models},
        },
        id=uuid5(UUID(run.flow_run_id), f"{event} {version.version}"),
    )
