"""Held-out rows in the training data are found, word for word and by their question."""

from dataclasses import replace

import pytest

from tasks.engine.data.rows.conversations import Example, Message, ToolCall
from tasks.engine.data.splits.leakage import Leaks, find_leaks

EXACT, SIMILAR, NONE = Leaks((1,), ()), Leaks((), (1,)), Leaks((), ())


def row(number: int, question: str, answer: str = "yes") -> Example:
    """Return a row of one question."""
    return Example(number, (Message("user", question), Message("assistant", answer)))


def talk(*turns: str, system: str | None = None) -> Example:
    """Return a row of several questions, each with its answer, under a system message or none."""
    opening = (Message("system", system),) if system else ()
    roles = ("user", "assistant") * (len(turns) // 2)
    return Example(1, (*opening, *map(Message, roles, turns)))


def test_a_row_that_was_trained_on_is_found_word_for_word() -> None:
    """The same question with the same answer is an exact leak, and counted once."""
    leaks = find_leaks([row(1, "Is it?"), row(2, "Was it?")], [row(7, "Was it?")])
    assert (leaks.exact, leaks.normalized) == ((2,), ())


def call(arguments: str) -> Message:
    """Return an answer that calls a tool."""
    return Message("assistant", "", tool_calls=(ToolCall("f", arguments),))


def test_calls_of_tools_are_part_of_what_is_said() -> None:
    """Two answers that call a tool otherwise differ, also as context of a later answer."""
    ask, result, end = Message("user", "Where?"), Message("tool", "ok"), Message("assistant", "b")
    one, same, other = (call(text) for text in ('{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a": 2}'))
    assert find_leaks([Example(1, (ask, one))], [Example(1, (ask, same))]) == EXACT
    assert find_leaks([Example(1, (ask, one))], [Example(1, (ask, other))]) == SIMILAR
    held_out = [Example(1, (ask, one, result, end))]
    assert find_leaks(held_out, [Example(1, (ask, same, result, end))]) == EXACT
    assert find_leaks(held_out, [Example(1, (ask, other, result, end))]) == NONE


def test_an_answer_that_is_not_trained_on_is_no_leak() -> None:
    """Of a conversation, only the answers that are learned prove nothing when asked again."""
    whole = talk("Was it?", "yes", "When?", "today")
    turns = list(whole.messages)
    turns[1] = replace(turns[1], is_trained=False)
    assert find_leaks([row(1, "Was it?")], [whole]) == EXACT
    assert find_leaks([row(1, "Was it?")], [replace(whole, messages=tuple(turns))]) == NONE


def test_case_marks_and_spaces_hide_nothing() -> None:
    """A question in other dress is a leak, and so is one with another answer."""
    held_out = [
        row(1, "WAS  it"),
        row(2, "Was it?", "no"),
        row(3, "\uff37as it \u2026"),
        row(4, "Is it?"),
    ]
    leaks = find_leaks(held_out, [row(7, "Was it?")])
    assert (leaks.exact, leaks.normalized) == ((), (1, 2, 3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3+4?", "what is 3 + 4"),
        ("3 \u2013 4", "3 - 4?"),
        ("COVID-19 cases", "covid 19 cases"),
        ("a well-known 10-minute walk", "A well known 10 minute walk."),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_the_same_question_in_other_dress(one: str, other: str) -> None:
    """Spaces around a sign, its form, hyphens and forms of one letter make no other question."""
    assert find_leaks([row(1, one)], [row(1, other)]) == (EXACT if one == other else SIMILAR)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("was it red?", "was it blue?"),
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is 3*4?", "What is 3/4?"),
        ("Is it -3?", "Is it 3?"),
        ("3 \u00f7 4", "3 \u00b1 4"),
        ("\u0915\u0940", "\u0915\u093e"),  # Hindi, told apart by the vowel sign alone
        ("\U0001f600", "???"),
    ],
)
def test_what_differs_in_what_is_asked_is_no_leak(one: str, other: str) -> None:
    """Another word, another operation, another vowel or other marks alone: another question."""
    assert find_leaks([row(1, one)], [row(1, other)]) == NONE


@pytest.mark.parametrize(
    ("held_out", "trained", "leaks"),
    [
        (talk("Who?", "Me."), talk("Who?", "Me.", "Why?", "So."), EXACT),
        (talk("who", "You."), talk("Who?", "Me.", "Why?", "So."), SIMILAR),
        (talk("Why?", "So."), talk("Who?", "Me.", "Why?", "So."), EXACT),
        (talk("Who?", "Me.", "Why?", "So."), talk("Why?", "So."), EXACT),
        (talk("a", "Read.", "Is it?", "yes"), talk("b", "Read.", "Is it?", "yes"), NONE),
        (talk("Me.", "Who?"), talk("Who?", "Me."), NONE),
    ],
)
def test_each_answer_of_a_talk_is_learned(
    held_out: Example, trained: Example, leaks: Leaks
) -> None:
    """A row that is the beginning or the end of a talk leaks; after another text it is another."""
    assert find_leaks([held_out], [trained]) == leaks


@pytest.mark.parametrize(
    ("system", "other", "leaks"),
    [("Be brief.", None, EXACT), (None, "Be brief.", EXACT), ("Be brief.", "Translate.", NONE)],
)
def test_a_system_message_hides_nothing(
    system: str | None, other: str | None, leaks: Leaks
) -> None:
    """On one side only it makes no other row; another one asks for something else."""
    held_out, trained = talk("Who?", "Me.", system=system), talk("Who?", "Me.", system=other)
    assert find_leaks([held_out], [trained]) == leaks


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("### Question:\nWhat is 3 + 4?\n### Answer:\n7", SIMILAR),
        ("what is 3 + 4 ... 7!", SIMILAR),
        ("What is 3 + 4? Who knows.", NONE),
        ("What is 3 + 4? It is 70.", NONE),
        ("7 is the answer. What is 3 + 4?", NONE),
    ],
)
def test_a_plain_text_may_hold_a_row(text: str, leaks: Leaks) -> None:
    """A text that is trained on leaks a row whose question and then answer it has."""
    assert find_leaks([row(1, "What is 3 + 4?", "7")], [Example(1, (), text)]) == leaks
