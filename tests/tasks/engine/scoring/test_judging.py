"""Sample answers are judged by what fits them: exact match, or for free text ROUGE-L."""

from types import SimpleNamespace
from typing import cast

import pytest

from tasks.config import Task
from tasks.engine.scoring import judge
from tasks.records import LoadedRecord, SampleRecord

LONG = "Please send us the number of your order, and we will look into it."
LABELS = ["refund", "card", "refund", "card"]
CASES: list[tuple[list[str], list[str], bool]] = [
    (LABELS, LABELS, False),
    (LABELS, ["x"] * 4, False),  # labels that nobody hits are still labels
    (['{"a": 1}', '{"a": 2}'], ["x", "y"], False),
    (["Paris", "Rome"], ["Paris", "x"], False),  # short, and hit once
    (["Paris", "Rome"], ["in Paris", "in Rome"], True),  # short, and never hit exactly
    ([LONG, LONG + " Thank you!"], [LONG, "x"], True),  # long, though hit once
]


def loaded(task: Task, expected: list[str], answers: list[str]) -> LoadedRecord:
    """Return a record of samples that the base has not answered."""
    samples = tuple(
        SampleRecord(
            prompt="?",
            expected=wanted,
            base_answer="",
            adapter_answer=answer,
            base_matches=False,
            adapter_matches=answer == wanted,
        )
        for wanted, answer in zip(expected, answers, strict=True)
    )
    # What else a record has is not read.
    base = SimpleNamespace(settings=SimpleNamespace(task=task))
    return cast(
        "LoadedRecord",
        SimpleNamespace(
            saved=SimpleNamespace(base=base), samples=samples, num_samples=len(samples)
        ),
    )


@pytest.mark.parametrize(("expected", "answers", "is_free_text"), CASES)
def test_free_text_is_judged_by_overlap(
    expected: list[str],
    answers: list[str],
    is_free_text: bool,  # noqa: FBT001 - a case
) -> None:
    """Labels, JSON and short answers are right or wrong; longer text, or what nobody hits, not."""
    judged = judge(loaded(Task.CAUSAL_LM, expected, answers))
    assert judged
    assert judged.is_free_text is is_free_text
    assert judged.text.startswith("ROUGE-L on" if is_free_text else "exact matches on")


def test_tags_are_no_text() -> None:
    """The tags of many words are judged by exact match, as there is no text to compare."""
    judged = judge(loaded(Task.TOKEN_CLASSIFICATION, ["O O B-X O O O O"], ["O"]))
    assert judged
    assert not judged.is_free_text


def test_a_better_answer_has_the_better_score() -> None:
    """An answer that shares most words with the expected one is no 0 %."""
    judged = judge(loaded(Task.CAUSAL_LM, [LONG], [LONG.replace("Please", "Kindly")]))
    assert judged
    assert judged.base == 0
    assert 0.8 < judged.adapter < 1
    assert judged.text == f"ROUGE-L on 1 held-out rows: base 0.000, adapter {judged.adapter:.3f}"


def test_without_samples_nothing_is_judged() -> None:
    """A run that samples no answers has no score of them."""
    assert judge(loaded(Task.CAUSAL_LM, [], [])) is None
