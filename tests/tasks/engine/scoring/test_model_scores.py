"""Scores of chosen rows are what their definitions give on these rows alone."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tasks.config import AnswerKind
from tasks.engine.objectives.entities import Entity, entities
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.engine.scoring.row_metrics import row_metrics

TAGS = ("B-PLACE", "I-PLACE", "B-WHO", "O")


def scored(kind: AnswerKind, expected: Sequence[str], answers: Sequence[str]) -> ModelScores:
    """Score answers by all metrics of their kind."""
    metrics = row_metrics(kind, expected, {})
    rows = [
        RowScores(
            answer=answer,
            nll=1.0,
            num_tokens=1,
            metrics={name: one(answer, wanted) for name, one in metrics.items()},
        )
        for answer, wanted in zip(answers, expected, strict=True)
    ]
    return ModelScores(kind, expected, rows)


def f1_of(expected: list[set[Entity]], found: list[set[Entity]]) -> float:
    """Return the F1 by its definition, from precision and recall."""
    right = sum(len(a & b) for a, b in zip(expected, found, strict=True))
    precision, recall = (right / sum(map(len, one)) for one in (found, expected))
    return 2 * precision * recall / (precision + recall) if right else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_tags_are_scored_over_the_words_of_the_chosen_rows(seed: int) -> None:
    """However rows are drawn, a long one counts by its words, and an entity as one."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    lengths = [draw.randint(1, 9) for _ in range(30)]
    expected, answers = ([draw.choices(TAGS, k=n) for n in lengths] for _ in range(2))
    scores = scored(AnswerKind.TAGS, *([" ".join(row) for row in x] for x in (expected, answers)))
    chosen = np.array(draw.choices(range(30), k=20))
    rows = [[x[row] for row in chosen] for x in (expected, answers)]
    words = [[tag for row in x for tag in row] for x in rows]
    wanted = {
        "accuracy": accuracy_score(*words),
        "macro_f1": f1_score(
            *words, labels=sorted(set(words[0])), average="macro", zero_division=0
        ),
        "entity_f1": f1_of(*([entities(row) for row in x] for x in rows)),
    }
    assert {name: scores.of(name, chosen) for name in wanted} == pytest.approx(wanted)


def test_words_without_a_tag_are_wrong_and_more_tags_than_words_are_nothing() -> None:
    """A model that says too little, or too much, is judged by the words that there are."""
    scores = scored(AnswerKind.TAGS, ["O O", "O B-WHO"], ["O", "O B-WHO B-WHO B-WHO"])
    assert scores.of("accuracy") == pytest.approx(3 / 4)
    assert scores.of("entity_f1") == 1


def test_what_is_no_label_spoils_the_recall_alone() -> None:
    """An answer that is no label at all counts against the expected one, and for no other."""
    scores = scored(AnswerKind.LABELS, ["a", "a", "a", "b"], ["a", "A ", "who knows?", "b"])
    assert scores.of("accuracy") == pytest.approx(0.75)
    assert scores.of("macro_f1") == pytest.approx((0.8 + 1) / 2)
    assert scores.of("exact_match") == pytest.approx(0.5)


def test_all_metrics_are_there_once() -> None:
    """Those of each row and those of all rows together; what is no text has no overlap."""
    tags = scored(AnswerKind.TAGS, ["B-WHO O"], ["O O"]).all()
    assert list(tags) == [
        "loss",
        "perplexity",
        "exact_match",
        "accuracy",
        "entity_f1",
        "macro_f1",
    ]
    assert "macro_f1" not in scored(AnswerKind.TEXT, ["a"], ["a"]).all()
