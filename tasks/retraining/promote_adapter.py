"""At the end of a retraining: carry out the decision, record it, and send its event."""

from uuid import UUID, uuid5

from prefect.events import Event

from tasks.durability.step import step
from tasks.engine.scoring import metric_title
from tasks.records import (
    CHAMPION,
    UNDECIDED,
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    Outcome,
    RunRecord,
    ScoredModel,
    VersionRecord,
)
from tasks.retraining.promotion import decision_event, promote_command
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
    decision = _carried_out(registry, version, decision, checked)
    registry.tag(version.version, _tags(evaluated, decision))
    lines = _lines(evaluated, decision, checked)
    registry.describe(version.version, lines)
    tracker = Tracker(run)
    tracker.set_tags({OUTCOME_TAG: decision.outcome, REASON_TAG: decision.reason})
    tracker.describe(lines)
    events.send([_event(version, evaluated, decision, run)])
    logger().info("%s %s", version.uri, decision.reason)
    return decision


def _carried_out(
    registry: Registry, version: VersionRecord, decision: DecisionRecord, checked: CheckedRecord
) -> DecisionRecord:
    """Move the aliases as decided; return the decision with what came of it."""
    no = None
    if decision.outcome is Outcome.PROMOTE:
        former = checked.champion.version if checked.champion else None
        no = registry.promote(version.version, former)
        if no is None:
            said = f"; {decision.approval}" if decision.approval else ""
            reason = f"promoted: {decision.compared}{said}"
            return decision.model_copy(update={"reason": reason})
        decision = decision.model_copy(update=no._asdict())
    elif by_hand := registry.why_champion(version.version):
        # Somebody promoted it while the run waited for approval; what they did stands.
        return decision.model_copy(update={"outcome": Outcome.PROMOTE, "reason": by_hand})
    if decision.outcome not in UNDECIDED:
        registry.withdraw(version.version)
    after_all = f"{decision.reason}; to promote it after all: {promote_command(version)}"
    return decision.model_copy(update={"reason": after_all})


def _lines(
    evaluated: EvaluatedRecord, decision: DecisionRecord, checked: CheckedRecord
) -> dict[str, str]:
    """Return the lines of the descriptions of version and run that say how it was decided."""
    scores = (
        f"{_named(model.name, checked)} {model.scores[decision.metric]:.4g}"
        for model in reversed(evaluated.models)
    )
    title = metric_title(decision.metric)
    return {
        "Score": f"{title} on {evaluated.num_rows} held-out rows: {', '.join(scores)}",
        "Decision": decision.reason,
        "Approval": decision.approval or "not asked for",
    }


def _named(model: str, checked: CheckedRecord) -> str:
    if model == CHAMPION and checked.champion:
        return f"{model} (version {checked.champion.version})"
    return model


def _tags(evaluated: EvaluatedRecord, decision: DecisionRecord) -> dict[str, str]:
    scores = _score_tags(evaluated, "score.")
    if evaluated.older:
        scores |= _score_tags(evaluated.older, "score.older.")
    return scores | {
        "decision.metric": decision.metric,
        "decision.num_rows": str(decision.num_rows),
        OUTCOME_TAG: decision.outcome.value,
        REASON_TAG: decision.reason,
    }


def _score_tags(evaluated: EvaluatedRecord, prefix: str) -> dict[str, str]:
    return {
        f"{prefix}{model.name}.{metric}": f"{value:.6g}"
        for model in evaluated.models
        for metric, value in _all_scores(evaluated, model).items()
    }


def _all_scores(evaluated: EvaluatedRecord, model: ScoredModel) -> dict[str, float]:
    """Return a model's scores on the held-out rows and on the harness's tasks."""
    harness = evaluated.harness
    return {**model.scores, **(harness.shown_scores(model.name) if harness else {})}


def _event(
    version: VersionRecord, evaluated: EvaluatedRecord, decision: DecisionRecord, run: RunRecord
) -> Event:
    """Return the event `adapterflow.adapter.promoted` or `.rejected`.

    Its id is a function of run and version, so that Prefect counts it once, however often sent.
    """
    event = decision_event(
        version,
        is_promoted=decision.outcome is Outcome.PROMOTE,
        reason=decision.reason,
        scores={model.name: _all_scores(evaluated, model) for model in evaluated.models},
        flow_run_id=run.flow_run_id,
    )
    identity = uuid5(UUID(run.flow_run_id), f"{event.event} {version.version}")
    return event.model_copy(update={"id": identity})
