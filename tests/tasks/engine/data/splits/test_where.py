"""`data.where` makes a training of some rows of a file."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.config import DataSettings
from tasks.engine.data.splits import column_values, read_examples
from tasks.errors import UserError

_ROWS: list[dict[str, object]] = [
    {"tenant": "ab"[number % 2], "n": number % 3, "prompt": f"question {number}", "completion": "x"}
    for number in range(30)
]


def _file(folder: Path, rows: Sequence[dict[str, object]], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def _settings(train: str, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"train": train, **changes})


def test_the_rows_are_those_of_a_file_with_no_others(tmp_path: Path) -> None:
    """Which rows are held out, and what is learned, is as if the other rows were not there."""
    mine = _file(tmp_path, [row for row in _ROWS if row["tenant"] == "a"], "mine.jsonl")
    every = _file(tmp_path, _ROWS)
    alone = read_examples(_settings(mine), seed=3)
    found = read_examples(_settings(every, where={"tenant": "a"}), seed=3)
    assert found.train.sha256 == alone.train.sha256
    assert found.eval
    assert alone.eval
    assert found.eval.sha256 == alone.eval.sha256
    assert list(found.train.examples) == list(alone.train.examples)


def test_the_column_counts_as_read(tmp_path: Path) -> None:
    """A column that decides which rows are read is not reported as unread."""
    train = _file(tmp_path, _ROWS)
    assert "tenant" in read_examples(_settings(train), seed=0).unread
    found = read_examples(_settings(train, where={"tenant": "a"}), seed=0).unread
    assert dict(found) == {"n": 15}


def test_held_out_rows_of_a_file_are_of_the_same_value(tmp_path: Path) -> None:
    """`eval` has rows of all tenants, of which only the own ones are evaluated on."""
    settings = _settings(
        _file(tmp_path, _ROWS), eval=_file(tmp_path, _ROWS[:4], "eval.jsonl"), where={"n": 1}
    )
    found = read_examples(settings, seed=0)
    assert found.eval
    assert [one.prompt_messages[0].content for one in found.eval.examples] == ["question 1"]


@pytest.mark.parametrize("given", [1, 1.0, "1"])
def test_numbers_are_compared_as_text(tmp_path: Path, given: object) -> None:
    """A CSV file has texts where a JSON file has numbers: both mean the same."""
    csv = tmp_path / "rows.csv"
    csv.write_text("n,prompt,completion\n" + "".join(f"{i % 2},q{i},x\n" for i in range(10)))
    for train in (str(csv), _file(tmp_path, _ROWS)):
        found = read_examples(_settings(train, where={"n": given}), seed=0)
        assert len(found.train.examples) in {4, 9}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"tennant": "a"}, "data.where names 'tennant', but no row of .* the columns: tenant, n"),
        ({"tenant": "c"}, "no row of .* where tenant is c, .* values of tenant: a, b$"),
        ({"tenant": "a", "n": 9}, "no row of .* values of n: 0, 1, 2$"),
    ],
)
def test_no_such_rows(tmp_path: Path, where: dict[str, object], message: str) -> None:
    """A column or value that no row has is one message with those that there are."""
    with pytest.raises(UserError, match=message):
        read_examples(_settings(_file(tmp_path, _ROWS), where=where), seed=0)


def test_a_bad_row_is_named_with_the_rows_it_is_counted_in(tmp_path: Path) -> None:
    """A number that counts only the matching rows says so."""
    bad: list[dict[str, object]] = [*_ROWS, {"tenant": "b", "prompt": "no answer"}]
    with pytest.raises(UserError, match="where tenant is b, row 16"):
        read_examples(_settings(_file(tmp_path, bad), where={"tenant": "b"}), seed=0)


def test_values_are_counted(tmp_path: Path) -> None:
    """Each value has its number of rows, and rows without one are counted, the first named."""
    rows: list[dict[str, object]] = [
        *_ROWS,
        {"prompt": "p", "completion": "x"},
        {"tenant": "", "prompt": "p"},
    ]
    found = column_values(_settings(_file(tmp_path, rows)), "tenant", "variants.split_by")
    assert found.train == {"a": 15, "b": 15}
    assert (found.num_without, found.first_without) == (2, 31)


def test_a_column_with_too_many_values_is_refused(tmp_path: Path) -> None:
    """A column that names every row is a mistake, found without reading all of them."""
    rows: list[dict[str, object]] = [{"id": number, "prompt": "p"} for number in range(10_500)]
    with pytest.raises(UserError, match="'id', which has more than 10,000 values"):
        column_values(_settings(_file(tmp_path, rows)), "id", "variants.split_by")
