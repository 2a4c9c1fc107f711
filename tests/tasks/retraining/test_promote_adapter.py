"""A decision is carried out in the registry, beside what people do there meanwhile."""

from pathlib import Path

from tasks.config import AnswerKind
from tasks.records import CheckedRecord, DecisionRecord, FileRecord, Outcome
from tasks.retraining.promote_adapter import _carried_out
from tasks.tracking import Registry, ready_client


def test_a_promotion_by_hand_outlasts_a_refused_approval(tmp_path: Path) -> None:
    """Whoever promotes a version while its run waits for approval is not contradicted by it."""
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "tickets")
    client, experiment = ready_client(registry.uri, "registry")
    model = client.create_logged_model(experiment, name="adapter")
    client.finalize_logged_model(model.model_id, "READY")
    version = registry.register(f"models:/{model.model_id}", None, {})
    checked = CheckedRecord(
        held_out=FileRecord(path=tmp_path, sha256="", size_bytes=0),
        num_rows=1,
        answers=AnswerKind.TEXT,
        leaked_rows=(),
        similar_rows=(),
        base_fingerprint="",
        configuration_sha256="",
        champion=None,
        unchanged_since=None,
    )
    for outcome in (Outcome.UNANSWERED, Outcome.REJECT):
        decision = DecisionRecord(outcome=outcome, reason="not promoted", metric="loss", num_rows=1)
        assert _carried_out(registry, version, decision, checked).outcome is outcome
    registry.promote_by_hand(version.version, "they prefer it", "ada")
    for outcome in (Outcome.UNANSWERED, Outcome.REJECT):
        decision = DecisionRecord(outcome=outcome, reason="not promoted", metric="loss", num_rows=1)
        after = _carried_out(registry, version, decision, checked)
        assert (after.outcome, after.reason) == (Outcome.PROMOTE, "promoted by ada: they prefer it")
