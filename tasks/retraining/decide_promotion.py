"""After the evaluation: apply the rule in `engine/scoring/decision.py`."""

from tasks.config import DecisionSettings
from tasks.durability.step import step
from tasks.engine.scoring import decide, read_scores
from tasks.records import (
    CHALLENGER,
    CHAMPION,
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    RunRecord,
)
from tasks.runtime.progress import logger


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
    older = None
    if evaluated.older:
        _, found = read_scores(evaluated.older.rows.path, evaluated.older.answers)
        older = (found[CHAMPION], found[CHALLENGER])
    decision = decide(
        settings,
        scores[evaluated.incumbent],
        scores[CHALLENGER],
        incumbent_name=evaluated.incumbent,
        older=older,
        harness=evaluated.harness,
        unchanged_since=checked.unchanged_since,
        seed=seed,
    )
    logger().info(decision.reason)
    return decision
