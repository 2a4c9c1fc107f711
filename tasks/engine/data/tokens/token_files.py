"""A split's tokens as a file: written once a run, row by row, and memory-mapped by its readers.

It is an uncompressed Arrow IPC file, so that a reader only loads the pages that it accesses. Each
row also has the example that its tokens came from, as JSON; where a conversation has several rows,
its first has it. Equal rows make equal files, byte by byte.

    input_ids  list<int32>
    is_label   list<bool>   one bit per token, where labels are the row's own tokens
    labels     list<int32>  where labels are something else: classes, tags, another text
    example    large_string  empty where it is that of the row before
    source     uint16        the number of the source; absent where there is only one
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.engine.data.rows import Example, Message, ToolCall
from tasks.engine.data.splits import LazySequence
from tasks.engine.data.tokens.tokenization import IGNORED, Tokenized, TokenizedRow
from tasks.runtime.atomic_files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

_TOKENS_AT_ONCE = 2**20
_ROWS_AT_ONCE = 4096


class MappedRows(LazySequence[TokenizedRow]):
    """The rows of a token file; each is made on access, and not kept.

    Args:
        file: the token file.
        kind: the class of its rows.
    """

    def __init__(self, file: "TokenFile", kind: type[TokenizedRow]) -> None:
        super().__init__(len(file), lambda place: file.row(place, kind))
        self.lengths = file.lengths()
        """The number of `input_ids` of each row, int64 [rows]."""
        self.conversation_starts = file.conversation_starts()
        """The first row of each conversation, int64 [conversations]."""


def row_lengths(rows: "Sequence[TokenizedRow]") -> "np.ndarray":
    """Return the number of `input_ids` of each row, int64 [rows]."""
    if isinstance(rows, MappedRows):
        return rows.lengths
    return np.array([len(row.input_ids) for row in rows], dtype=np.int64)


def conversation_starts(rows: "Sequence[TokenizedRow]") -> "np.ndarray":
    """Return the first row of each conversation, int64 [conversations]; a single row is one."""
    if isinstance(rows, MappedRows):
        return rows.conversation_starts
    numbers = [row.conversation for row in rows]
    begins = [
        this is None or this != before
        for before, this in zip([None, *numbers], numbers, strict=False)
    ]
    return np.flatnonzero(begins)


def write_token_file(
    file: Path, tokenized: Iterable[Tokenized], *, has_sources: bool = False
) -> None:
    """Write the rows that are not dropped to a file, atomically.

    Consecutive rows with the same `Example` object are those of one conversation.

    Args:
        file: the file; an existing one is replaced.
        tokenized: the rows.
        has_sources: whether they are of several sources, whose numbers are written, too.

    Raises:
        AdapterflowError: the file cannot be written.
    """
    schema = _schema(has_sources=has_sources)
    with _new_file(file, schema) as write:
        chunk, before = _Chunk(), None
        for one in tokenized:
            if one.row is not None:
                chunk.add(one.row, None if one.example is before else one.example, one.source)
                before = one.example
            if chunk.is_full():
                write(chunk)
                chunk = _Chunk()
        write(chunk)


class TokenFile:
    """A token file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._chunks = [_MappedChunk.of(batch) for batch in batches]
        self._ends = np.cumsum([len(chunk.example) for chunk in self._chunks]).tolist()
        begins = [chunk.has_example() for chunk in self._chunks]
        self._starts = np.flatnonzero(np.concatenate([[], *begins]))

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def lengths(self) -> "np.ndarray":
        """Return the number of `input_ids` of each row, int64 [rows]."""
        lengths = [np.diff(chunk.input_ids.ends) for chunk in self._chunks]
        return np.concatenate(lengths, dtype=np.int64)

    def conversation_starts(self) -> "np.ndarray":
        """Return the first row of each conversation, int64 [conversations]."""
        return self._starts

    def sources(self) -> "np.ndarray":
        """Return the number of the source of each row, int64 [rows]."""
        numbers = [
            np.zeros(len(one.example), np.int64) if one.source is None else one.source.to_numpy()
            for one in self._chunks
        ]
        return np.concatenate(numbers, dtype=np.int64)

    def row(self, place: int, kind: type[TokenizedRow]) -> TokenizedRow:
        """Read the row at a place, counted from 0."""
        chunk, at = self._find(place)
        ids = chunk.input_ids.numbers(at)
        if kind.labels_are_tokens:
            labels = np.where(chunk.is_label.flags(at), ids, IGNORED)
        else:
            labels = chunk.labels.numbers(at)
        return kind(ids.tolist(), labels.tolist(), self._conversation(place))

    def examples(self) -> LazySequence[Example]:
        """Return the examples that the rows came from; each is read on access."""
        return LazySequence(len(self), self._example)

    def _example(self, place: int) -> Example:
        chunk, at = self._find(int(self._starts[self._conversation(place)]))
        return _read_example(chunk.example[at].as_py())

    def _conversation(self, place: int) -> int:
        return int(np.searchsorted(self._starts, place, side="right")) - 1

    def _find(self, place: int) -> tuple["_MappedChunk", int]:
        number = bisect_right(self._ends, place)
        before = self._ends[number - 1] if number else 0
        return self._chunks[number], place - before


class _Lists(NamedTuple):
    """A column of lists, as views of the mapped file."""

    ends: "np.ndarray"
    values: Any
    """A `pyarrow.Array` of the values of all lists, one after the other."""

    @classmethod
    def of(cls, column: Any) -> "_Lists":  # noqa: ANN401 - pyarrow has no types
        return cls(column.offsets.to_numpy(), column.values)

    def numbers(self, at: int) -> "np.ndarray":
        start, end = int(self.ends[at]), int(self.ends[at + 1])
        found: np.ndarray = self.values.slice(start, end - start).to_numpy()
        return found

    def flags(self, at: int) -> "np.ndarray":
        start, end = int(self.ends[at]), int(self.ends[at + 1])
        found: np.ndarray = self.values.slice(start, end - start).to_numpy(zero_copy_only=False)
        return found


class _MappedChunk(NamedTuple):
    """One record batch of the file."""

    input_ids: _Lists
    is_label: _Lists
    labels: _Lists
    example: "pa.Array"
    source: "pa.Array | None"
    """None where all rows are of one source."""

    @classmethod
    def of(cls, batch: Any) -> "_MappedChunk":  # noqa: ANN401 - pyarrow has no types
        ids, is_label, labels, example, *source = batch.columns
        number = source[0] if source else None
        return cls(_Lists.of(ids), _Lists.of(is_label), _Lists.of(labels), example, number)

    def has_example(self) -> "np.ndarray":
        """Return whether each row has its own example, or else that of the row before, bool."""
        from pyarrow.compute import binary_length

        return binary_length(self.example).to_numpy() > 0  # type: ignore[no-any-return]


class _Chunk:
    """Rows that are written together, as one record batch."""

    def __init__(self) -> None:
        self._values = {
            "input_ids": array("i"),
            "is_label": array("b"),
            "labels": array("i"),
        }
        self._ends = {name: array("i", [0]) for name in self._values}
        self._examples: list[str] = []
        self._sources = array("H")

    def add(self, row: TokenizedRow, example: Example | None, source: int) -> None:
        """Add a row; without an example, that of the row before is its own, too."""
        values = self._values
        values["input_ids"].extend(row.input_ids)
        if row.labels_are_tokens:
            values["is_label"].extend(label != IGNORED for label in row.labels)
        else:
            values["labels"].extend(row.labels)
        for name, ends in self._ends.items():
            ends.append(len(values[name]))
        self._examples.append(_written(example) if example else "")
        self._sources.append(source)

    def is_full(self) -> bool:
        return (
            len(self._examples) >= _ROWS_AT_ONCE
            or len(self._values["input_ids"]) >= _TOKENS_AT_ONCE
        )

    def batch(self, schema: "pa.Schema") -> "pa.RecordBatch":
        import pyarrow as pa

        columns = []
        for name, field in zip(self._values, schema, strict=False):
            values = np.asarray(self._values[name])
            inner = pa.array(values.astype(bool) if name == "is_label" else values)
            ends = pa.array(np.asarray(self._ends[name]))
            columns.append(pa.ListArray.from_arrays(ends, inner, type=field.type))
        columns.append(pa.array(self._examples, pa.large_string()))
        columns.append(pa.array(np.asarray(self._sources)))
        return pa.record_batch(columns[: len(schema)], schema=schema)


def _schema(*, has_sources: bool) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "is_label": pa.list_(pa.bool_()),
            "labels": pa.list_(pa.int32()),
            "example": pa.large_string(),
            **({"source": pa.uint16()} if has_sources else {}),
        }
    )


@contextmanager
def _new_file(file: Path, schema: "pa.Schema") -> "Iterator[Any]":
    """Yield a function that writes a chunk; the file appears once all are written."""
    import pyarrow as pa

    with atomic_file(file) as sibling, pa.ipc.new_file(sibling, schema) as writer:
        yield lambda chunk: writer.write_batch(chunk.batch(schema))


def _written(example: Example) -> str:
    turns = [_written_message(one) for one in example.messages]
    fields = [example.row, turns, example.text, example.label, example.words, example.tags]
    if example.rejected:
        more = [example.tools, *_written_rejected(example)]
    elif example.is_desirable is not None:
        more = [example.tools, example.is_desirable]
    else:
        more = [example.tools] if example.tools else []
    return json.dumps([*fields, *more], ensure_ascii=False)


def _written_rejected(example: Example) -> tuple[int, list[list[object]]]:
    """Return how many messages a rejected conversation has in common, and its others."""
    pairs = zip(example.messages, example.rejected, strict=False)
    num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return num_common, [_written_message(one) for one in example.rejected[num_common:]]


def _written_message(message: Message) -> list[object]:
    """Return role and content, and a third item with the other fields that differ from defaults."""
    plain = Message(message.role, message.content)
    if message == plain and message.no_separator == plain.no_separator:  # which `==` leaves out
        return [message.role, message.content]
    default, given = asdict(plain), asdict(message)
    others = {name: value for name, value in given.items() if value != default[name]}
    return [message.role, message.content, others]


def _read_example(text: str) -> Example:
    row, turns, plain, label, words, tags, *more = json.loads(text)
    messages = tuple(_read_message(*turn) for turn in turns)
    tools, *rest = more or [""]
    example = Example(row, messages, plain, label, tuple(words), tuple(tags), tools)
    if not rest:
        return example
    if len(rest) == 1:
        return replace(example, is_desirable=rest[0])
    num_common, others = rest
    rejected = (*messages[:num_common], *(_read_message(*turn) for turn in others))
    return replace(example, rejected=rejected)


def _read_message(role: str, content: str, others: Mapping[str, Any] | None = None) -> Message:
    if others is None:
        return Message(role, content)
    calls = tuple(ToolCall(**call) for call in others.get("tool_calls", ()))
    return Message(role, content, **{**others, "tool_calls": calls})
