"""Rows of a chosen and a rejected answer, as TRL, ShareGPT, LLaMA-Factory and others have them."""

import json
from typing import Any

import pytest

from tasks.config.data import GENERATIVE, PREFERENCES, OnLostAnswer, RowFormat, Turns
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_formats import detect_row_format, read_example, read_question
from tasks.errors import UserError

USER, GOOD, BAD = Message("user", "Where is it?"), "On its way.", "No idea."


def turn(role: str, content: object) -> dict[str, object]:
    """Return a message as OpenAI has it."""
    return {"role": role, "content": content}


ASKED, CHOSEN, REJECTED = (
    turn("user", USER.content),
    turn("assistant", GOOD),
    turn("assistant", BAD),
)
SAID = [{"from": "human", "value": USER.content}]
ROWS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": USER.content, "chosen": GOOD, "rejected": BAD},
    "messages": {"prompt": [ASKED], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "as JSON": {
        "prompt": json.dumps([ASKED]),
        "chosen": json.dumps([CHOSEN]),
        "rejected": json.dumps([REJECTED]),
    },
    "implicit prompt": {"chosen": [ASKED, CHOSEN], "rejected": [ASKED, REJECTED]},
    "a text beside conversations": {
        "prompt": USER.content,
        "chosen": [ASKED, CHOSEN],
        "rejected": [ASKED, REJECTED],
    },
    "texts beside messages": {"prompt": [ASKED], "chosen": GOOD, "rejected": BAD},
    "content parts": {
        "prompt": [turn("user", [{"type": "text", "text": USER.content}])],
        "chosen": [turn("assistant", [{"type": "text", "text": GOOD}])],
        "rejected": [REJECTED],
    },
    "sharegpt": {
        "conversations": SAID,
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "sharegpt, implicit prompt": {
        "chosen": [*SAID, {"from": "gpt", "value": GOOD}],
        "rejected": [*SAID, {"from": "gpt", "value": BAD}],
    },
}


def read(row: dict[str, Any], **how: Any) -> Example:  # noqa: ANN401 - arguments of read_example
    """Read a row in the format that it is detected to have."""
    return read_example(1, row, detect_row_format(row, "rows", learnable=PREFERENCES), **how)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_form_is_a_prompt_and_two_answers(row: dict[str, Any]) -> None:
    """All forms of the same pair are read as the same two conversations."""
    example = read(row)
    assert example.messages == (USER, Message("assistant", GOOD))
    assert example.rejected == (USER, Message("assistant", BAD))
    assert example.as_rejected.messages == example.rejected
    assert example.answer == GOOD


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_pair_asks_its_prompt(row: dict[str, Any]) -> None:
    """As a question, it is the prompt without either answer."""
    _, example = read_question(1, row)
    assert example.messages == (USER, Message("assistant", ""))


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: a? A: yes", "Q: a? A: no", "Q: a? A:"),
        ("Q: a? A: yes", "Q: a? A: yet", "Q: a? A:"),
        ("Q: a? A:\nyes", "Q: a? A:\nno", "Q: a? A:\n"),
        ("Q: a? A: yes", "Q: a? A: yes", "Q: a? A:"),
    ],
)
def test_texts_begin_with_the_words_of_their_prompt(
    chosen: str, rejected: str, prompt: str
) -> None:
    """Without a prompt, it is what both begin with, up to the word in which they differ."""
    example = read({"chosen": chosen, "rejected": rejected}, on_lost_answer=OnLostAnswer.DROP)
    assert [one.content for one in example.messages] == [prompt, chosen.removeprefix(prompt)]
    assert example.rejected[0].content + example.rejected[1].content == rejected


def test_the_answers_of_a_prompt_are_context() -> None:
    """Only what follows the prompt is compared; system message and tools are those of both."""
    earlier = [turn("user", "a"), turn("assistant", "b"), ASKED]
    row = {"chosen": [*earlier, CHOSEN], "rejected": [*earlier, REJECTED], "system": "s"}
    for example in (read(row), read(row).as_rejected):
        assert [one.role for one in example.messages] == [
            *("system", "user", "assistant", "user", "assistant")
        ]
        trained = [one.is_trained for one in example.messages if one.role == "assistant"]
        assert trained == [False, True]


def test_a_call_of_a_tool_can_be_chosen() -> None:
    """Answers after the prompt may be several messages, of which `data.turns` takes the last."""
    call = {"type": "function", "function": {"name": "find", "arguments": "{}"}}
    called = [turn("assistant", None) | {"tool_calls": [call]}, turn("tool", "x"), CHOSEN]
    row = {"prompt": [ASKED], "chosen": called, "rejected": [REJECTED], "tools": [call]}
    example = read(row)
    assert example.tools
    assert [one.role for one in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert len(example.rejected) == 2
    last = read(row, turns=Turns.LAST).messages
    assert [one.is_trained for one in last if one.role == "assistant"] == [False, True]


def test_how_a_prompt_is_joined_does_not_make_it_another_one() -> None:
    """A conversation begins with its prompt, whichever is marked; the prompt's mark counts."""
    system = turn("system", "s")
    marked = [one | {"no_separator": True} for one in (system, ASKED)]
    answers = {"chosen": [system, ASKED, CHOSEN], "rejected": [REJECTED]}
    for row in ({"prompt": marked} | answers, {"prompt": marked, "system": "s"} | answers):
        for example in (read(row), read(row).as_rejected):
            joined = [one.no_separator for one in example.messages]
            assert joined == [True, True, False]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        (
            {
                "prompt": [ASKED],
                "chosen": [CHOSEN | {"no_separator": True}],
                "rejected": [CHOSEN],
            },
            "chosen and rejected are the same",
        ),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "chosen is empty, so there is nothing"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is empty"),
        ({"prompt": [ASKED], "chosen": [CHOSEN], "rejected": []}, "rejected is empty"),
        (
            {"chosen": [ASKED, CHOSEN], "rejected": [ASKED, turn("assistant", " ")]},
            "rejected is empty",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused_or_left_to_be_dropped(
    row: dict[str, Any], message: str
) -> None:
    """With `on_lost_answer: drop` such a pair is read, and dropped and counted later."""
    with pytest.raises(BadRowError, match=rf"{message}.* set data\.on_lost_answer to drop"):
        read(row)
    assert read(row, on_lost_answer=OnLostAnswer.DROP).row == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "yes", "rejected": "no"}, "there is no prompt"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen is 3; it must be text"),
        (
            {"prompt": [ASKED], "chosen": [turn("user", "x"), CHOSEN], "rejected": [REJECTED]},
            "chosen is a conversation that does not begin with the prompt",
        ),
        (
            {"chosen": [ASKED, CHOSEN], "rejected": [turn("user", "x"), REJECTED]},
            "chosen does not continue the prompt with an answer",
        ),
        (
            {"chosen": [ASKED, CHOSEN, ASKED], "rejected": [ASKED, REJECTED]},
            "the last message is the user's",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x.png"]},
            "a column images: only text is read",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "reasoning_content": "r"},
            "a column reasoning_content",
        ),
    ],
)
def test_malformed_pairs_are_refused(row: dict[str, Any], message: str) -> None:
    """The message says what is missing or contradicts itself."""
    with pytest.raises(BadRowError, match=message):
        read(row)


def test_the_objective_and_the_rows_have_to_fit() -> None:
    """Pairs for answers, and answers for pairs: one message each, with what to set."""
    with pytest.raises(UserError, match=r"set training\.objective: dpo"):
        detect_row_format(ROWS["texts"], "rows", learnable=GENERATIVE)
    answer: dict[str, object] = {"prompt": "a", "completion": "b"}
    with pytest.raises(UserError, match=r"from pairs \(dpo, orpo, simpo\).*or set objective: sft"):
        detect_row_format(answer, "rows", learnable=PREFERENCES)
    with pytest.raises(UserError, match=r"with this training\.objective; possible: preference"):
        detect_row_format(answer, "rows", RowFormat.TEXT, PREFERENCES)
    with pytest.raises(UserError, match="for preference, rejected is missing"):
        detect_row_format({"prompt": "a", "chosen": "b"}, "rows", learnable=PREFERENCES)
