"""Token F1 and ROUGE-L are what their papers define, for texts of any language."""

import pytest

from tasks.engine.scoring.token_overlap import rouge_l, token_f1

# The numbers are those of the package rouge-score 0.1.2, given the same tokens.
PAIRS = [
    ("cat the", "the cat sat", 0.8, 0.4),
    ("the cat sat on the mat", "the cat sat on the mat", 1.0, 1.0),
    ("police killed the gunman", "police kill the gunman", 0.75, 0.75),
    ("the gunman kill police", "police killed the gunman", 0.75, 0.5),
    ("the the the cat", "the cat the dog the", 0.888888888888889, 0.6666666666666665),
    ("the cat the dog the", "the the the cat", 0.888888888888889, 0.6666666666666665),
    ("a b c x y z a b c", "a b c a b c x", 0.8750000000000001, 0.75),
    ("a b c d", "d c b a", 1.0, 0.25),
    ("a", "a a a a", 0.4, 0.4),
    ("", "", 0.0, 0.0),
    ("", "a b", 0.0, 0.0),
    ("a b", "", 0.0, 0.0),
    ("   ", "x", 0.0, 0.0),
    ("Yes, I can!", "yes i can", 0.7499999999999999, 0.7499999999999999),
    ("don't", "don t", 0.8, 0.8),
    ("snake_case x_1", "snake case x 1", 0.0, 0.0),
    ("3.14 %", "3,14%", 0.75, 0.75),
    ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1}', 1.0, 0.6),
    ("line one\nline two", "line two\nline one", 1.0, 0.5),
    ("Straße 5", "STRASSE 5", 1.0, 1.0),
    ("Grüße aus Köln", "Gruesse aus Koeln", 0.3333333333333333, 0.3333333333333333),
    ("Ответ: 42.", "Ответ — 42", 0.5714285714285715, 0.5714285714285715),
    ("これは本です。", "これは本。", 0.5, 0.5),
    ("🙂🙂 ok", "🙂 ok 🙂", 1.0, 0.6666666666666666),
    ("e\u0301te\u0301", "\u00e9t\u00e9", 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "expected", "f1", "in_order"), PAIRS)
def test_the_numbers_are_those_of_the_reference(
    answer: str, expected: str, f1: float, in_order: float
) -> None:
    """Token F1 ignores the order of the tokens, ROUGE-L counts those in common order."""
    assert token_f1(answer, expected) == pytest.approx(f1)
    assert rouge_l(answer, expected) == pytest.approx(in_order)


@pytest.mark.parametrize("text", ["Grüße aus Köln", "これは本です", "!?", "Ответ: 42"])
def test_overlap_knows_all_languages(text: str) -> None:
    """An answer equal to the expected one overlaps wholly, whatever its letters."""
    assert token_f1(text, text) == rouge_l(text, text) == 1
