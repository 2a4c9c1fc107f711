"""Columns of other names are read as ours, in training, evaluation and prediction."""

import json
from itertools import chain, repeat
from pathlib import Path

import pytest

from tasks.config import AdapterSettings, DataSettings, PredictBatchConfig
from tasks.engine.data.rows.column_names import renamed
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.objectives.causal_lm import CausalLM
from tasks.engine.scoring.exact_match import read_answered
from tasks.engine.scoring.prediction import Question
from tasks.engine.scoring.question_files import open_questions
from tasks.errors import UserError

NAMES = {"prompt": "question", "completion": "answer"}
FAQ: list[Row] = [{"question": f"a{n}", "answer": "b", "prompt": "p"} for n in range(3)]


@pytest.fixture
def faq(tmp_path: Path) -> str:
    """Write rows whose columns have other names, and one that has one of ours."""
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FAQ))
    return str(path)


def test_named_columns_are_read(faq: str) -> None:
    """The column that has our name, and is not meant, is counted among those not read."""
    sets = read_examples(DataSettings(train=faq, columns=NAMES, eval_fraction=0), seed=0)
    assert [one.question for one in sets.train.examples] == ["a0", "a1", "a2"]
    assert sets.unread == {"prompt (not question)": 3}
    swapped = {"prompt": "completion", "completion": "prompt"}
    (row,) = renamed([{"prompt": "b", "completion": "a"}], swapped)
    assert row == {"prompt": "a", "completion": "b"}


def test_evaluation_and_prediction_name_theirs(faq: str, tmp_path: Path) -> None:
    """The same names are given in `evaluation.columns` and in `columns` of `predict`."""
    assert read_answered(Path(faq), CausalLM(), NAMES).examples[0].question == "a0"
    config = PredictBatchConfig(
        adapters=[AdapterSettings(source="a")],
        input=faq,
        output=str(tmp_path / "out.jsonl"),
        answer_column="said",
        columns={"prompt": "question"},
    )
    asked = open_questions(config)
    assert asked.rows == FAQ
    first = asked.questions[0]
    assert isinstance(first, Question)
    assert first.example.question == "a0"


def test_a_name_that_no_row_has_is_a_mistake(faq: str) -> None:
    """A missing column is named beside those there are, unless a later row has it."""
    settings = DataSettings(train=faq, columns={"prompt": "questions"})
    with pytest.raises(UserError, match=r"data\.columns names 'questions', .*: question, answer"):
        read_examples(settings, seed=0)
    rows: list[Row] = [{"prompt": "a"}, {"prompt": "b", "about": "s"}]
    assert list(renamed(rows, {"system": "about"})) == [rows[0], {"prompt": "b", "system": "s"}]


def test_rows_are_still_read_in_a_stream() -> None:
    """A name that no row has is reported at the end, and rows before that are read as they come."""
    endless = renamed(repeat({"prompt": "a"}), {"system": "about"})
    assert next(endless) == {"prompt": "a"}
    many = renamed(repeat({"prompt": "a"}, 2000), {"system": "about"})
    with pytest.raises(UserError, match="names 'about'"):
        list(chain(many))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "prompt"}, "'question' is not a column .*possible: messages, "),
        ({"prompt": "text", "completion": "text"}, "prompt and completion are both read from 'te"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(columns: dict[str, str], message: str) -> None:
    """Ours comes first, and each column is read as one thing."""
    with pytest.raises(ValueError, match=message):
        DataSettings(train="rows.jsonl", columns=columns)
