"""The comparison's report says what changed, and in which direction."""

from pathlib import Path

import pytest

from tasks.config import AnswerKind, ApprovalSettings
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.records import (
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    FileRecord,
    HarnessModel,
    HarnessRecord,
    HarnessScore,
    HarnessTask,
    Outcome,
    ScoredModel,
)
from tasks.retraining.comparison_report import comparison_report, proposal, row_changes

LINE = (
    '{"row": 1, "prompt": "a|b?", "expected": "yes", "models": {'
    '"base": {"answer": "no", "nats": 2.0, "num_tokens": 1, "metrics": {"exact_match": 0.0}}, '
    '"challenger": {"answer": "yes", "nats": 1.0, "num_tokens": 1, "metrics": {"exact_match": 1.0}}'
    "}}\n"
)


def scores(*hits: float) -> ModelScores:
    """Return a model with these hits."""
    rows = [
        RowScores(answer="", nll=2 - hit, num_tokens=1, metrics={"exact_match": hit})
        for hit in hits
    ]
    return ModelScores(AnswerKind.TEXT, ["x"] * len(hits), rows)


def of_harness(**accuracies: float) -> HarnessRecord:
    """Return the models' scores on a task of the harness, and on a part of it."""
    models = tuple(
        HarnessModel(
            name=name,
            made_from="",
            tasks=(HarnessTask(name="facts", version="1.0", num_rows=7, num_fewshot=5),),
            scores=tuple(
                HarnessScore(task=task, metric="acc", value=acc, stderr=0.01, higher_is_better=True)
                for task in ("facts", "facts_part")
            ),
            warnings=(),
            seconds=1.0,
        )
        for name, acc in accuracies.items()
    )
    return HarnessRecord(lm_eval_version="0.4", limit=7, models=models, shown=("facts",))


@pytest.mark.parametrize("metric", ["exact_match", "loss"])
def test_rows_are_better_or_worse_for_the_challenger(metric: str) -> None:
    """Rows that changed stand in the list of their direction, equal rows in none."""
    assert row_changes(metric, scores(0, 1, 1, 0), scores(1, 0, 1, 0)) == ([0], [1])


def test_the_report_begins_with_the_decision(tmp_path: Path) -> None:
    """Its first lines are the outcome; the better score is marked, and a changed row is shown.

    Before anybody approved it, it asks, and does not say that it has happened.
    """
    file = tmp_path / "rows.jsonl"
    file.write_text(LINE)
    models = tuple(
        ScoredModel(
            name=name,
            source=name,
            weights_sha256="0",
            scores={"exact_match": score},
            rows_per_second=2.0,
        )
        for name, score in (("base", 0.0), ("challenger", 1.0))
    )
    record = FileRecord.of(file)
    evaluated = EvaluatedRecord(
        rows=record,
        num_rows=1,
        answers=AnswerKind.TEXT,
        models=models,
        warnings=("unfair",),
        harness=of_harness(base=0.5, challenger=0.25),
    )
    checked = CheckedRecord(
        held_out=record,
        num_rows=1,
        answers=AnswerKind.TEXT,
        leaked_rows=(),
        similar_rows=(1,),
        base_fingerprint="",
        configuration_sha256="",
        champion=None,
        unchanged_since=None,
    )
    decision = DecisionRecord(
        outcome=Outcome.PROMOTE,
        reason="promoted: so",
        metric="exact_match",
        num_rows=1,
        incumbent=0.2,
        challenger=0.4,
    )
    text = comparison_report(evaluated, decision, checked)
    assert text.startswith("# Promoted\n\nPromoted: so\n")
    assert "| exact match (decides) | 0 | **1** |" in text
    assert "## 1 rows got better" in text
    blocks = [text.index(f"**{n}**") for n in ("Prompt", "Expected", "Base", "Challenger")]
    assert blocks == sorted(blocks)
    assert "```text\na|b?\n```" in text
    asked = "Better than the base: exact match 0.4 against 0.2 on 1 rows. Make it champion?"
    for proposed in (
        comparison_report(evaluated, decision, checked, is_proposal=True),
        proposal(evaluated, decision, checked, ApprovalSettings()),
    ):
        assert asked in proposed.splitlines()[0]
    assert "Without an answer within 1440 minutes it is not promoted." in proposed
    assert "promoted:" not in proposed
    assert "of them in the training data: 1" in text
    assert "\n- unfair\n" in text
    assert "On lm-evaluation-harness 0.4, the first 7 rows of each task" in text
    assert "| facts/acc | 0.5 ± 0.01 | 0.25 ± 0.01 |" in text
    assert "facts_part" not in text
    assert "- task facts, version 1.0: 7 rows, 5-shot" in text
