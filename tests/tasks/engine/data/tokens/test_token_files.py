"""Tokens are made once a run, and are the same for everybody who reads them from their files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.token_file import peaks
from tasks.config import BaseModelSettings, DataSettings
from tasks.engine.base.sources import find_base
from tasks.engine.data.rows.conversations import Example, Message, ToolCall
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.token_files import (
    MappedRows,
    TokenFile,
    conversation_starts,
    row_lengths,
    write_token_file,
)
from tasks.engine.data.tokens.tokenization import (
    IGNORED,
    Tokenized,
    TokenizedRow,
    shared_prefix_length,
)
from tasks.engine.objectives.classes import ClassifiedRow
from tasks.engine.objectives.seq2seq import PairRow
from tasks.engine.preparation import prepare_data
from tasks.errors import UserError

EXAMPLES = (
    Example(1, (Message("user", "Où?"), Message("assistant", "\u2028 là 😀"))),
    Example(3, (), "a b", words=("a", "b"), tags=("O", "B-x")),
    Example(7, (), "text", "label"),
    Example(8, (Message("user", "a", no_separator=True), Message("assistant", "b"))),
    Example(
        9,
        (
            Message("assistant", "", "so", (ToolCall("f", '{"b": 1}', "1"),), is_trained=False),
            Message("tool", "2", name="f", tool_call_id="1"),
        ),
        tools='[{"type": "function"}]',
    ),
)
ROWS = [
    TokenizedRow([5, 6, 7], [IGNORED, 6, 7]),
    PairRow([5, 6, 7], [9]),
    ClassifiedRow([5, 6, 7], [2]),
    ClassifiedRow([5, 6, 7], [IGNORED, 1, IGNORED]),
]


def written(file: Path, rows: list[TokenizedRow]) -> TokenFile:
    """Write rows, each with one of the examples."""
    made = (Tokenized(EXAMPLES[n % len(EXAMPLES)], row) for n, row in enumerate(rows))
    write_token_file(file, made)
    return TokenFile(file)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_rows_and_examples_come_back_equal(tmp_path: Path, row: TokenizedRow) -> None:
    """Whatever labels are, and wherever in a file of many parts a row stands."""
    kind = type(row)
    rows = [kind([*row.input_ids, n], [*row.labels, n]) for n in range(5000)]
    file = written(tmp_path / "rows.arrow", rows)
    assert list(MappedRows(file, kind)) == rows
    found = list(file.examples()[: len(EXAMPLES) + 1])
    assert found == [*EXAMPLES, EXAMPLES[0]]
    # Compared by all fields: messages are equal without some.
    assert [asdict(one) for one in found] == [asdict(one) for one in (*EXAMPLES, EXAMPLES[0])]
    assert row_lengths(MappedRows(file, kind)).tolist() == row_lengths(rows).tolist()


def test_mapped_rows_are_a_sequence(tmp_path: Path) -> None:
    """They are counted, cut and indexed from both ends, and share the prefix that lists share."""
    rows = [TokenizedRow([1, 2, 3, n], [IGNORED, IGNORED, IGNORED, n]) for n in range(4, 8)]
    mapped = MappedRows(written(tmp_path / "rows.arrow", rows), TokenizedRow)
    assert (len(mapped), mapped[-1], mapped[1:3]) == (4, rows[3], rows[1:3])
    assert shared_prefix_length(mapped) == shared_prefix_length(rows) == 2
    with pytest.raises(IndexError):
        mapped[4]


def test_a_dropped_example_has_no_row(tmp_path: Path) -> None:
    """Rows and examples stay side by side."""
    kept = TokenizedRow([5, 6], [IGNORED, 6])
    made = [Tokenized(EXAMPLES[0], None), Tokenized(EXAMPLES[1], kept)]
    write_token_file(tmp_path / "rows.arrow", made)
    file = TokenFile(tmp_path / "rows.arrow")
    assert (list(MappedRows(file, TokenizedRow)), list(file.examples())) == ([kept], [EXAMPLES[1]])


def prepared(
    base: Path, folder: Path, rows: Sequence[Mapping[str, object]], **data: object
) -> PreparedData:
    """Tokenise rows to train on."""
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(file), "eval_fraction": 0, **data}
    settings = DataSettings.model_validate(given)
    source = find_base(BaseModelSettings(source=str(base)))
    return prepare_data(read_examples(settings, 0), settings, 0, source, folder / "tokens")


def test_each_format_has_its_own_tokens(tiny_base: Path, tmp_path: Path) -> None:
    """The same rows, read as another format by a second run, are what that run trains on."""
    turns = [{"role": "user", "content": "The"}, {"role": "assistant", "content": "fox runs"}]
    row = {"messages": turns, "instruction": "Say", "output": "dog"}
    texts = []
    for given in ("messages", "instruction"):
        data = prepared(tiny_base, tmp_path, [row], format=given)
        texts.append(data.renderer.tokenizer.decode(data.train.rows[0].input_ids))
    assert "runs" in texts[0]
    assert "dog" in texts[1]


def test_equal_data_makes_equal_files(tiny_base: Path, tmp_path: Path) -> None:
    """A step that runs again on the same data leaves a record that later steps' records fit."""
    rows = [{"prompt": f"The {n}", "completion": " fox"} for n in range(9)]
    once, again = (prepared(tiny_base, tmp_path / name, rows) for name in "ab")
    assert once.record.tokens[0].sha256 == again.record.tokens[0].sha256


def test_a_mistake_leaves_no_file(tiny_base: Path, tmp_path: Path) -> None:
    """A row that loses its answer ends the writing, and nothing half-made stays."""
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 99, "completion": "b"}]
    with pytest.raises(UserError, match="row 2: the answer lies entirely beyond"):
        prepared(tiny_base, tmp_path, rows, max_length=40)
    assert not list((tmp_path / "tokens").iterdir())


def test_rows_of_an_example_are_a_conversation(tmp_path: Path) -> None:
    """Rows of a conversation share a number and one example, wherever a chunk of the file ends."""
    sizes = [1, *[2] * 2500, 3]
    examples = [replace(EXAMPLES[0], row=number) for number in range(len(sizes))]
    owners = [one for one, size in zip(examples, sizes, strict=True) for _ in range(size)]
    row = TokenizedRow([5, 6], [IGNORED, 6])
    write_token_file(tmp_path / "rows.arrow", (Tokenized(example, row) for example in owners))
    file = TokenFile(tmp_path / "rows.arrow")
    rows = MappedRows(file, TokenizedRow)
    assert list(file.examples()) == owners
    assert [one.conversation for one in rows] == [example.row for example in owners]
    assert conversation_starts(rows).tolist() == conversation_starts(list(rows)).tolist()
    assert np.diff(conversation_starts(rows), append=len(rows)).tolist() == sizes
    assert (tmp_path / "rows.arrow").read_bytes().count("Où?".encode()) == len(sizes)


def test_rows_of_their_own_are_no_conversations(tmp_path: Path) -> None:
    """A row without a conversation begins its own, even if its example equals the one before."""
    rows = [TokenizedRow([5, 6], [IGNORED, 6])] * 3
    write_token_file(
        tmp_path / "rows.arrow", (Tokenized(replace(EXAMPLES[0]), row) for row in rows)
    )
    mapped = MappedRows(TokenFile(tmp_path / "rows.arrow"), TokenizedRow)
    assert conversation_starts(mapped).tolist() == conversation_starts(rows).tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_million_rows_fit(tiny_base: Path) -> None:
    """By the growth from 20,000 to 80,000 rows of three sources, reading a million takes 1 GB.

    Making their tokens takes 2 GB.
    """
    few, many = (peaks(str(tiny_base), count, 3) for count in (20_000, 80_000))
    per_row = {phase: (many[phase] - few[phase]) / 60_000 for phase in few}
    assert 1e6 * per_row["read_peak_bytes"] < 1e9
    assert 1e6 * per_row["make_peak_bytes"] < 2e9
