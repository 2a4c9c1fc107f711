"""Rows of an answer and whether it is desirable, as TRL and LLaMA-Factory have them for KTO."""

from typing import Any

import pytest

from tasks.config.data import GENERATIVE, JUDGED, PREFERENCES, RowFormat
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_formats import detect_row_format, read_example, read_question
from tasks.errors import UserError

TEXTS: dict[str, Any] = {"prompt": "Where is it?", "completion": "On its way.", "label": True}
ASKED = {"role": "user", "content": "Where is it?"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}
MESSAGES: dict[str, Any] = {"prompt": [ASKED], "completion": [CALL], "label": False}


def read(row: dict[str, Any]) -> Example:
    """Read a row in the format that it is detected to have."""
    return read_example(1, row, detect_row_format(row, "rows", learnable=JUDGED))


def test_a_judged_row_is_an_answer_with_its_label() -> None:
    """Texts and messages, with calls of tools; as a question, neither answer nor label matters."""
    example = read(TEXTS)
    assert [one.content for one in example.messages] == [TEXTS["prompt"], TEXTS["completion"]]
    assert example.is_desirable is True
    called = read(MESSAGES)
    assert called.messages[-1].tool_calls[0].name == "find"
    assert called.is_desirable is False
    for row in (TEXTS, MESSAGES):
        assert read_question(1, row)[1].messages[-1] == Message("assistant", "")


@pytest.mark.parametrize(
    ("given", "expected"), [(1, True), (0, False), (1.0, True), ("True", True), (" false", False)]
)
def test_a_label_may_be_a_number_or_a_text(given: object, expected: object) -> None:
    """As CSV files and pandas write truth values."""
    assert read(TEXTS | {"label": given}).is_desirable is expected


@pytest.mark.parametrize("given", [2, None, "good", "", [True], 0.5])
def test_any_other_label_is_refused(given: object) -> None:
    """One message says what it must be."""
    with pytest.raises(BadRowError, match="it must be true where the answer is desirable"):
        read(TEXTS | {"label": given})


def test_the_objective_and_the_rows_have_to_fit() -> None:
    """Judged rows for another objective, and other rows for kto: one message each."""
    with pytest.raises(BadRowError, match=r"set training\.objective: kto"):
        read_example(1, TEXTS, detect_row_format(TEXTS, "rows", learnable=GENERATIVE))
    with pytest.raises(UserError, match="set objective: kto to learn from judged answers"):
        detect_row_format(TEXTS, "rows", learnable=PREFERENCES)
    answer: dict[str, object] = {"prompt": "a", "completion": "b"}
    with pytest.raises(
        UserError, match=r"objective is kto.* add a column label with true or false"
    ):
        detect_row_format(answer, "rows", learnable=JUDGED)
    pair: dict[str, object] = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UserError, match=r"set training\.objective: dpo"):
        detect_row_format(pair, "rows", learnable=JUDGED)
    with pytest.raises(UserError, match=r"cannot be used with this training\.objective"):
        detect_row_format(TEXTS, "rows", RowFormat.UNPAIRED, PREFERENCES)


def test_where_both_kinds_are_possible_a_truth_value_is_a_judgement() -> None:
    """Other labels beside an answer are something else, such as a class."""
    both = (*GENERATIVE, *JUDGED)
    for label in (True, "TRUE", "False", 1, 0.0, "0", "1.0"):
        row = TEXTS | {"label": label}
        assert detect_row_format(row, "rows", learnable=both) is RowFormat.UNPAIRED
    other = TEXTS | {"label": "delivery"}
    assert detect_row_format(other, "rows", learnable=both) is RowFormat.PROMPT_COMPLETION
