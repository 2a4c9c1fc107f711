"""Held-out rows in the training data are found, word for word and by their question."""

from tasks.engine.leakage import find_leaks
from tasks.engine.row_formats import Example, Message


def row(number: int, question: str, answer: str = "yes") -> Example:
    """Give a row of one question."""
    return Example(number, (Message("user", question), Message("assistant", answer)))


def test_a_row_that_was_trained_on_is_found_word_for_word() -> None:
    """The same question with the same answer is an exact leak, and counted once."""
    leaks = find_leaks([row(1, "Is it?"), row(2, "Was it?")], [row(7, "Was it?")])
    assert (leaks.exact, leaks.normalised) == ((2,), ())


def test_case_marks_and_spaces_hide_nothing() -> None:
    """A question in other dress is a leak, and so is one with another answer."""
    held_out = [
        row(1, "WAS  it"),
        row(2, "Was it?", "no"),
        row(3, "\uff37as it \u2026"),
        row(4, "Is it?"),
    ]
    leaks = find_leaks(held_out, [row(7, "Was it?")])
    assert (leaks.exact, leaks.normalised) == ((), (1, 2, 3))


def test_marks_alone_are_told_apart() -> None:
    """Questions without a word are compared by their marks, not all taken for the same."""
    assert find_leaks([row(1, "\U0001f600")], [row(1, "???")]).normalised == ()


def test_the_same_words_in_other_roles_are_another_question() -> None:
    """What differs in a word is no leak."""
    assert find_leaks([row(1, "was it red?")], [row(1, "was it blue?")]).normalised == ()
