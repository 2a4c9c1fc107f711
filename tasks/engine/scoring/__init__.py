"""Held-out rows, answers to rows, metrics, and the decision between two models."""

from tasks.engine.scoring.answer_files import write_answers
from tasks.engine.scoring.decision import decide
from tasks.engine.scoring.evaluation import Evaluation, evaluate
from tasks.engine.scoring.exact_match import exact_match_on
from tasks.engine.scoring.harness import score_on_harness
from tasks.engine.scoring.harness_library import check_installed
from tasks.engine.scoring.harness_tasks import (
    HarnessTasks,
    check_guards,
    harness_sha256,
    open_tasks,
)
from tasks.engine.scoring.held_out import HeldOut, open_held_out, open_older
from tasks.engine.scoring.judging import Judged, judge
from tasks.engine.scoring.metric_names import metric_title
from tasks.engine.scoring.model_scores import LESS_IS_BETTER, ModelScores
from tasks.engine.scoring.plot import draw_comparison
from tasks.engine.scoring.prediction import (
    Answered,
    Question,
    answer_question,
    answer_questions,
    prompts_sha256,
    read_row,
)
from tasks.engine.scoring.question_files import (
    QuestionFile,
    check_columns,
    check_output,
    open_questions,
)
from tasks.engine.scoring.row_metrics import source_sha256
from tasks.engine.scoring.samples import load_and_sample
from tasks.engine.scoring.score_files import read_scores, write_scores
from tasks.engine.scoring.serving_reference import reference_for_serving, score_answers

__all__ = [
    "LESS_IS_BETTER",
    "Answered",
    "Evaluation",
    "HarnessTasks",
    "HeldOut",
    "Judged",
    "ModelScores",
    "Question",
    "QuestionFile",
    "answer_question",
    "answer_questions",
    "check_columns",
    "check_guards",
    "check_installed",
    "check_output",
    "decide",
    "draw_comparison",
    "evaluate",
    "exact_match_on",
    "harness_sha256",
    "judge",
    "load_and_sample",
    "metric_title",
    "open_held_out",
    "open_older",
    "open_questions",
    "open_tasks",
    "prompts_sha256",
    "read_row",
    "read_scores",
    "reference_for_serving",
    "score_answers",
    "score_on_harness",
    "source_sha256",
    "write_answers",
    "write_scores",
]
