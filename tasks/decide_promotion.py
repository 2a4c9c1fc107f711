"""After the evaluation: decide by the rule in `engine/decision.py`."""

from tasks.comparison_records import CHALLENGER, CheckedRecord, DecisionRecord, EvaluatedRecord
from tasks.config import DecisionSettings
from tasks.engine.decision import decide
from tasks.engine.score_files import read_scores
from tasks.progress import logger
from tasks.records import RunRecord
from tasks.step import step


@step
def decide_promotion(
    evaluated: EvaluatedRecord,
    checked: CheckedRecord,
    settings: DecisionSettings,
    seed: int,
    run: RunRecord,  # noqa: ARG001 - the step's seconds are logged to it
) -> DecisionRecord:
    """Decide whether the challenger becomes the champion."""
    _, scores = read_scores(evaluated.rows.path, evaluated.answers)
    decision = decide(
        settings,
        scores[evaluated.incumbent],
        scores[CHALLENGER],
        incumbent_name=evaluated.incumbent,
        unchanged_since=checked.unchanged_since,
        seed=seed,
    )
    logger().info(decision.reason)
    return decision
