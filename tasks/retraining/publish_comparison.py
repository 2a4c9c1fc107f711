"""At the end of a retraining: publish the comparison in Prefect and in MLflow."""

from prefect.artifacts import create_markdown_artifact

from tasks.durability.step import step
from tasks.engine.scoring import draw_comparison, read_scores
from tasks.records import (
    CHALLENGER,
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    RunRecord,
)
from tasks.retraining.comparison_report import comparison_report
from tasks.runtime.markdown import embedded, without_breaks
from tasks.tracking import Tracker


@step
def publish_comparison(
    evaluated: EvaluatedRecord,
    decision: DecisionRecord,
    checked: CheckedRecord,
    run: RunRecord,
    *,
    is_proposal: bool = False,
) -> str:
    """Publish the comparison, and return it as Markdown without the picture.

    Before a person approved it, a promotion is a proposal.
    """
    picture = draw_comparison(evaluated, decision, run.folder / "evaluation" / "comparison.png")
    markdown = comparison_report(
        evaluated,
        decision,
        checked,
        is_proposal=is_proposal,
        picture=embedded("scores", picture),
    )
    plain = comparison_report(evaluated, decision, checked, is_proposal=is_proposal)
    tracker = Tracker(run)
    tracker.log_file(picture)
    tracker.log_text(without_breaks(plain), "comparison.md")
    tracker.log_table(_table(evaluated), "comparison.json")
    create_markdown_artifact(
        markdown=markdown,
        key="adapter-comparison",
        description=f"{CHALLENGER} beside {evaluated.incumbent}",
    )
    return plain


def _table(evaluated: EvaluatedRecord) -> list[dict[str, object]]:
    """Return the rows of MLflow's table: each held-out row with the answers of all models."""
    prompts, scores = read_scores(evaluated.rows.path, evaluated.answers)
    return [
        {
            "prompt": prompt,
            "expected": scores[CHALLENGER].expected[row],
            **{name: one.rows[row].answer for name, one in scores.items()},
        }
        for row, prompt in enumerate(prompts)
    ]
