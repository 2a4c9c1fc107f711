"""Whatever is wrong with a file or folder of rows is one short message with the place in it."""

import datetime as dt
import decimal
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tasks.config import DataSettings, Task
from tasks.engine.data.rows.row_sources import read_lines, read_rows
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.scoring.prediction import Answered, Question, read_row
from tasks.errors import UserError

FAR = pa.array([0, 10**18], pa.int64()).view(pa.timestamp("us"))
NOT_UTF8 = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
TEXTS = ["a", "b"]


def refused(source: Path, task: Task = Task.CAUSAL_LM) -> str:
    """Read rows to train on, and return the message with which they are refused."""
    with pytest.raises(UserError) as caught:
        read_examples(DataSettings(train=str(source), eval_fraction=0), 0, task)
    message = str(caught.value)
    assert source.name in message
    assert message.isprintable()
    assert len(message.replace(str(source), "")) < 600
    return message


def table(**columns: object) -> pa.Table:
    """Return a table with columns to learn from, unless others replace them."""
    return pa.table({"prompt": TEXTS, "completion": TEXTS} | columns)


CELLS = {
    "time beyond 9999": (table(at=FAR), "row 2: the column at can't be read .timestamp.us"),
    "in a list": (
        table(
            at=pa.array([[0], [10**18]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us")))
        ),
        "row 2: the column at",
    ),
    "not UTF-8": (table(prompt=NOT_UTF8), "row 2: the column prompt can't be read .string."),
    "not UTF-8, not read": (table(note=NOT_UTF8), "row 2: the column note"),
    "binary": (table(prompt=[b"a", b"b"]), r"row 1: prompt is of the type bytes \(b'a'\); it must"),
    "date": (table(completion=[dt.date(2026, 1, 2)] * 2), r"type date \(2026-01-02\); it must be"),
    "decimal": (table(prompt=[decimal.Decimal("1.5")] * 2), r"type Decimal \(1.5\); it must be te"),
    "duration": (table(prompt=[dt.timedelta(1)] * 2), "row 1: prompt is of the type timedelta"),
    "number": (table(prompt=[1, 2]), "row 1: prompt is 1; it must be text"),
    "nested": (table(prompt=[{"x": ["a"]}] * 2), 'row 1: prompt is {"x": .*; it must be text'),
    "null": (table(prompt=["a", None]), "row 2: prompt is null; it must be text"),
    "no rows": (table().slice(0, 0), "has no rows; at least one is needed"),
    "no columns": (pa.table({}), "has no rows; at least one is needed"),
    "a name twice": (
        pa.Table.from_arrays([pa.array(TEXTS)] * 3, ["prompt", "completion", "prompt"]),
        "several columns have the name prompt",
    ),
}


@pytest.mark.parametrize(("given", "message"), CELLS.values(), ids=CELLS)
def test_a_parquet_cell_that_is_no_text_is_named(
    tmp_path: Path, given: pa.Table, message: str
) -> None:
    """The message has the row, the column and the value, whatever type the file gives it."""
    parquet.write_table(given, tmp_path / "rows.parquet")
    assert re.search(message, refused(tmp_path / "rows.parquet"))


def test_texts_of_every_arrow_type_are_text(tmp_path: Path) -> None:
    """Dictionaries and large strings are how other programs write a text; dates are not read."""
    given = table(
        prompt=pa.array(TEXTS).dictionary_encode(),
        completion=pa.array(TEXTS, pa.large_string()),
        system=pa.array(TEXTS, pa.string_view()),
        at=[dt.datetime(2026, 1, 2, tzinfo=dt.UTC)] * 2,
    )
    parquet.write_table(given, tmp_path / "rows.parquet")
    sets = read_examples(DataSettings(train=str(tmp_path / "rows.parquet"), eval_fraction=0), 0)
    assert [one.answer for one in sets.train.examples] == TEXTS
    assert sets.unread == {"at": 2}


def test_rows_beside_one_that_cannot_be_read_are_answered(tmp_path: Path) -> None:
    """`predict` reports such a row as any other bad one, by its number, and answers the rest."""
    parquet.write_table(table(prompt=NOT_UTF8), tmp_path / "rows.parquet")
    rows = read_lines(tmp_path / "rows.parquet")
    good, bad = (read_row(number, row, {"a": "a"}, "adapter") for number, row in enumerate(rows, 1))
    assert isinstance(good, Question)
    assert isinstance(bad, Answered)
    assert "rows.parquet, row 2: the column prompt can't be read" in str(bad.error)


def test_rows_beside_one_that_cannot_be_read_are_as_they_are_without_it(tmp_path: Path) -> None:
    """Keys that Arrow adds to objects, as other rows have them, are left out all the same."""
    objects = [{"city": "Oslo"}, {"day": "today"}]
    for name, note in (("good", TEXTS), ("bad", NOT_UTF8)):
        parquet.write_table(table(at=objects, note=note), tmp_path / f"{name}.parquet")
    good, bad = (read_lines(tmp_path / f"{name}.parquet") for name in ("good", "bad"))
    assert bad[0] == good[0]
    assert isinstance(good[0], dict)
    assert good[0]["at"] == {"city": "Oslo"}
    assert isinstance(bad[1], UserError)


@pytest.mark.parametrize("left", [0, 1, 4, 100, -8, -1])
def test_a_cut_parquet_file_is_refused(tmp_path: Path, left: int) -> None:
    """What an interrupted copy leaves is refused: not a Parquet file, or an empty one."""
    parquet.write_table(table(), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[:left])
    assert re.search("is not a readable Parquet file|is empty", refused(tmp_path / "rows.parquet"))


JSON = {
    "BOM twice": b'\xef\xbb\xbf\xef\xbb\xbf{"text": "a"}',
    "UTF-16": '{"text": "a"}\n'.encode("utf-16"),
    "UTF-16 without a mark": '{"text": "a"}\n'.encode("utf-16-le"),
    "NUL": b'{"text": "a\0b"}',
    "NULs alone": b"\0" * 100,
    "number of thousands of digits": b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
    "nested": b'{"text": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested without end": b'{"text": ' + b"[" * 100_000,
    "nested objects": b'{"text": "a", "x": ' + b'{"x":' * 500 + b"1" + b"}" * 501,
    "a long line": b'{"text": "' + b"x" * 300_000,
    "a long value": b'{"text": ["' + b"x" * 300_000 + b'"]}',
    "a long number": b'{"text": ' + b"9" * 4000 + b"}",
    "a long name": b'{"' + b"x" * 300_000 + b'": "a"}',
    "a long name twice": b'{"' + b"x" * 300_000 + b'": 1, "' + b"x" * 300_000 + b'": 1}',
    "many names": json.dumps({f"name {n}": n for n in range(10_000)}).encode(),
    "half a character": b'{"text": "\\ud800"}',
    "half a character in a name": b'{"\\ud800": 1}',
    "half a character as role": b'{"messages": [{"role": "\\ud800", "content": "a"}]}',
    "NaN": b'{"text": NaN}',
    "a number beyond all": b'{"text": 1e999}',
    "line breaks of old Macs": b'{"text": "a"}\r{"text": "b"}',
    "no object": b"null",
    "ShareGPT of anything": b'{"conversations": [{"from": [["x"]], "value": 1}]}',
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json_that_is_no_row_is_refused_in_a_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    """However large or strange the value is, the message shows its ends, and where it is."""
    is_list = suffix == ".json" and content[:1] == b"{"
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"[" + content + b"]" if is_list else content)
    assert refused(path)


def test_a_long_value_is_shown_by_its_ends_and_length(tmp_path: Path) -> None:
    """A message stays one short line, and states how long the value was."""
    (tmp_path / "rows.jsonl").write_bytes(JSON["a long value"])
    message = refused(tmp_path / "rows.jsonl")
    assert 'row 1: text is ["xxxx' in message
    assert 'xxxx"] (300,004 characters); it must be text' in message


CSV = {
    "one long name": b"x" * 300_000 + b"\n1\n",
    "many names": b",".join(b"%d" % n for n in range(20_000)) + b"\n",
    "names twice": b"text," * 5000 + b"text\n",
    "a quote without end": b'text\n"' + b"x\n" * 100_000,
    "NULs": b"text\n\0\n\0,\0\n",
    "UTF-16": "text\na\n".encode("utf-16"),
    "a long label": b"text,label\na,a\n" + b"b," + b"x" * 300_000 + b"\n",
}


@pytest.mark.parametrize("name", CSV)
def test_csv_that_is_no_table_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    """The message names the line, and repeats little of the file."""
    (tmp_path / "rows.csv").write_bytes(CSV[name])
    refused(tmp_path / "rows.csv", Task.TOKEN_CLASSIFICATION)


STATES: dict[str, object] = {
    "a list": [],
    "null": None,
    "a number": 3,
    "empty": {},
    "files that are no list": {"_data_files": 3},
    "a file without a name": {"_data_files": [{}]},
    "a file elsewhere": {"_data_files": [{"filename": "gone.arrow"}]},
}


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_a_datasets_folder_of_another_shape_is_refused(
    tmp_path: Path, file: str, content: object
) -> None:
    """The folder is named as one of datasets, with what it fails on; or it is read all the same."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    (DatasetDict(train=rows) if "dict" in file else rows).save_to_disk(tmp_path / "data")
    (tmp_path / "data" / file).write_text(json.dumps(content))
    try:
        found: object = read_rows(str(tmp_path / "data"), "train", None)
    except UserError as error:
        found = str(error)
    refusals = "data is a folder of datasets that can't be read: |data has no split 'train'"
    assert found == [{"text": "a"}, {"text": "b"}] or re.search(refusals, str(found))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-150])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": _empty,
    "cut": _cut,
    "text": lambda file: file.write_text("rows"),
    "a folder": _replaced_by_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_datasets_folder_without_its_rows_is_refused(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """A copy that lacks the Arrow file, or a part of it, is refused as incomplete."""
    from datasets import Dataset

    Dataset.from_list([{"text": "a" * 100}] * 5).save_to_disk(tmp_path / "data")
    [file] = (tmp_path / "data").glob("*.arrow")
    damage(file)
    assert "can't be read: " in refused(tmp_path / "data")


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "is a pipe or device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or device"),
    "dangling link": (lambda path: path.symlink_to("gone"), "is a link to gone, which does not"),
    "folder": (Path.mkdir, "is neither a folder that datasets"),
    "nothing": (lambda _: None, "does not exist"),
}


@pytest.mark.parametrize(("make", "message"), PLACES.values(), ids=PLACES)
def test_what_is_no_file_is_told_as_what_it_is(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    """A pipe can't be read twice, and is not waited for."""
    make(tmp_path / "rows.jsonl")
    assert message in refused(tmp_path / "rows.jsonl")


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CELLS_OF_JSON = [
    ({"messages": CHAT}, Task.CAUSAL_LM),
    ({"messages": CHAT, "tools": []}, Task.CAUSAL_LM),
    ({"tokens": ["a", "b"], "tags": ["O", 1]}, Task.TOKEN_CLASSIFICATION),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(("row", "task"), CELLS_OF_JSON)
def test_lists_may_be_json_in_a_cell(
    tmp_path: Path, row: dict[str, object], task: Task, suffix: str
) -> None:
    """Training and `predict` read them alike, and as the lists that other formats have."""
    from datasets import Dataset

    cells = Dataset.from_list([{name: json.dumps(value) for name, value in row.items()}] * 2)
    path = tmp_path / f"rows{suffix}"
    match suffix:
        case ".parquet":
            cells.to_parquet(path)
        case ".jsonl":
            cells.to_json(path)
        case _:
            cells.to_csv(path, sep="\t" if suffix == ".tsv" else ",")
    (tmp_path / "plain.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    from_cells, from_lists = (
        read_examples(DataSettings(train=str(one), eval_fraction=0), 0, task, ("O", "1"))
        for one in (path, tmp_path / "plain.jsonl")
    )
    assert list(from_cells.train.examples) == list(from_lists.train.examples)
    questions = [
        read_row(1, read_lines(one)[0], {"a": "a"}, "adapter")
        for one in (path, tmp_path / "plain.jsonl")
    ]
    assert questions[0] == questions[1]
    assert isinstance(questions[0], Question)


def test_a_column_that_is_not_read_may_hold_anything(tmp_path: Path) -> None:
    """A key given twice in a cell of messages matters only where messages are read."""
    (tmp_path / "rows.csv").write_text(
        'prompt,completion,messages\na,b,"[{""role"": 1, ""role"": 2}]"\n'
    )
    settings = DataSettings.model_validate(
        {"train": str(tmp_path / "rows.csv"), "format": "prompt-completion"}
    )
    assert read_examples(settings, 0).unread == {"messages": 1}
