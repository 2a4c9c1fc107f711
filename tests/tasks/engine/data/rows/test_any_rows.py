"""Rows that hold anything are read, or refused by a message that has the file and the place."""

import csv
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tasks.config import DataSettings, Task
from tasks.engine.data.rows.row_sources import read_lines
from tasks.engine.data.rows.unread_columns import unread_text
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.scoring.prediction import Answered, read_row
from tasks.errors import UserError

COLUMNS = [
    *("messages", "prompt", "completion", "instruction", "input", "output", "system", "text"),
    *("label", "tokens", "tags", "tools", "weight", "chosen", "conversations", "id", "adapter"),
]
KEYS = ["role", "content", "type", "text", "from", "value", "name", "tool_calls", "weight", "train"]

texts = st.one_of(
    st.sampled_from(
        ["", " ", "a", "user", "assistant", "system", "O", "1", "[]", '{"a": 1, "a": 1}']
    ),
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Co", "Zl"]), max_size=5),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]) | values, "content": texts | values},
    optional=dict.fromkeys(("name", "weight", "tool_calls"), values),
)
cells = st.one_of(
    values,
    st.lists(messages, max_size=4),
    st.lists(messages, max_size=4).map(json.dumps),
    st.lists(texts, max_size=4),
)
rows = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS) | texts, cells, min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)
tasks = st.sampled_from([Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])

thorough = settings(derandomize=True, deadline=None, max_examples=40)


def check(name: str, write: Callable[[Path], Any], task: Task) -> None:
    """Read a file to train on and to answer; an error has to name the file, and be one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        try:
            sets = read_examples(DataSettings(train=str(path)), 0, task)
            list(sets.train.examples)
            unread_text(sets.unread).encode()
        except UserError as error:
            check_message(str(error), path)
        try:
            lines = read_lines(path)
        except UserError as error:
            check_message(str(error), path)
            return
        for number, line in enumerate(lines, start=1):
            found = read_row(number, line, {"a": "a", "b": "b"}, "adapter")
            if isinstance(found, Answered):
                check_message(str(found.error), path if isinstance(line, UserError) else None)


def check_message(message: str, path: Path | None) -> None:
    """Check that a message is short, printable and names the place."""
    assert message.isprintable()
    rest = message.replace(str(path), "FILE")
    assert len(rest) < 2500, rest
    assert "FILE" in rest if path else re.match(r"row \d+", rest)


@given(rows, tasks)
@thorough
def test_jsonl(drawn: list[dict[str, object]], task: Task) -> None:
    """One object in each line."""
    text = "".join(json.dumps(row) + "\n" for row in drawn)
    check("rows.jsonl", lambda path: path.write_text(text), task)


@given(rows, tasks)
@thorough
def test_json(drawn: list[dict[str, object]], task: Task) -> None:
    """All rows are one value."""
    check("rows.json", lambda path: path.write_text(json.dumps(drawn)), task)


def _write_csv(drawn: list[dict[str, object]], path: Path) -> None:
    columns = list(dict.fromkeys(name for row in drawn for name in row))
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in drawn:
            plain = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in row.items()
            }
            writer.writerow(plain)


@given(rows, tasks)
@thorough
def test_csv(drawn: list[dict[str, object]], task: Task) -> None:
    """Texts as they are, all else as JSON; half a character is written as bytes."""
    check("rows.csv", lambda path: _write_csv(drawn, path), task)


int64 = st.integers(-(2**63), 2**63 - 1)
whole = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
arrays: list[st.SearchStrategy[Any]] = [
    st.tuples(st.lists(whole | st.none(), min_size=2, max_size=2), st.just(pa.string())),
    st.tuples(
        st.lists(whole, min_size=2, max_size=2), st.just(pa.dictionary(pa.int8(), pa.string()))
    ),
    st.tuples(st.lists(st.binary(max_size=9), min_size=2, max_size=2), st.just(pa.binary())),
    st.tuples(
        st.lists(st.lists(whole, max_size=3), min_size=2, max_size=2),
        st.just(pa.list_(pa.string())),
    ),
    st.tuples(
        st.lists(
            st.lists(st.fixed_dictionaries({"role": whole, "content": whole}), max_size=3),
            min_size=2,
            max_size=2,
        ),
        st.just(pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))),
    ),
    st.tuples(
        st.lists(st.integers(-9, 9), min_size=2, max_size=2),
        st.sampled_from([pa.int8(), pa.float16(), pa.float64(), pa.decimal128(9, 2), pa.date32()]),
    ),
]
as_numbers = st.tuples(
    st.lists(int64, min_size=2, max_size=2),
    st.sampled_from(
        [
            *(pa.timestamp(unit) for unit in ("ms", "us", "ns")),
            pa.timestamp("us", "Europe/Berlin"),
            pa.timestamp("us", "Nowhere/Nowhere"),
            *(pa.duration(unit) for unit in ("ms", "ns")),
            pa.time64("ns"),
            pa.date64(),
        ]
    ),
)
bytes_as_text = st.lists(st.binary(max_size=4), min_size=2, max_size=2)


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """Draw two cells of any type, with values that the type does not allow, too."""
    match draw(st.integers(0, 3)):
        case 0:
            numbers, kind = draw(as_numbers)
            return pa.array(numbers, pa.int64()).view(kind)
        case 1:
            return pa.array(draw(bytes_as_text), pa.binary()).view(pa.string())
        case _:
            found, kind = draw(st.one_of(arrays))
            return (
                pa.array(found).cast(kind) if pa.types.is_floating(kind) else pa.array(found, kind)
            )


tables = st.lists(st.tuples(st.sampled_from(COLUMNS) | whole, columns()), min_size=1, max_size=5)


@given(tables, tasks)
@thorough
def test_parquet(drawn: list[tuple[str, pa.Array]], task: Task) -> None:
    """Columns of all types are read or refused, also times that Python lacks and invalid UTF-8."""
    names, found = [name for name, _ in drawn], [one for _, one in drawn]
    given_table = pa.Table.from_arrays(found, names)
    check("rows.parquet", lambda path: parquet.write_table(given_table, path), task)


def _contents() -> dict[str, bytes]:
    table = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "n": [1, 2]})
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    lines = [json.dumps(row) for row in table.to_pylist()]
    return {
        "rows.jsonl": "\n".join(lines).encode(),
        "rows.json": f"[{','.join(lines)}]".encode(),
        "rows.csv": b'prompt,completion\na,"b"\n"c ""d""\n",e\n',
        "rows.parquet": buffer.getvalue().to_pybytes(),
    }


CONTENTS = _contents()


@pytest.mark.parametrize("name", CONTENTS)
@given(data=st.data())
@thorough
def test_damaged_files(name: str, data: st.DataObject) -> None:
    """A byte is another one, or the end is missing, as after a copy that went wrong."""
    content = bytearray(CONTENTS[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    left = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    check(name, lambda path: path.write_bytes(content[:left]), Task.CAUSAL_LM)
