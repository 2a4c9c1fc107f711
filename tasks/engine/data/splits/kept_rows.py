"""The rows of one source, checked and spooled to disk, so that the source is read only once.

Which rows are trained on and which are held out is known only when all have been counted. Until
then they are canonical JSON lines in an unnamed temporary file, not objects in memory.
"""

import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.config.data import OnLostAnswer, RowFormat, Turns
from tasks.engine.data.rows import Example, Row, count_unread, naming_row, read_example
from tasks.engine.data.splits.lazy_sequence import LazySequence
from tasks.runtime.atomic_files import writing

_ORDERED = b" "
"""Begins a line that keeps the order of its row's keys, as templates render that of tools."""


class KeptRows:
    """All rows of a source; a row's place counts from 0, its number from 1.

    Args:
        rows: of the source, in order.
        row_format: which columns of each are read, and how.
        source: where they are from, for messages.
        turns: which answers are trained on.
        on_lost_answer: whether a row may have none.

    Raises:
        UserError: a row is malformed; the message names it.
        AdapterflowError: the temporary file cannot be written.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        row_format: RowFormat,
        source: str,
        turns: Turns = Turns.ALL,
        on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR,
    ) -> None:
        self._format, self._turns, self._on_lost_answer = row_format, turns, on_lost_answer
        self._starts = array("q", [0])
        # 64-bit hashes tell equal rows apart without keeping any of them.
        self._asked = array("q")
        self._learned = array("q")
        self.first_with: dict[str, int] = {}
        """The number of the first row that has each label."""
        self.unread: Counter[str] = Counter()
        """The number of rows with a value in a column that is not read, by the column's name."""
        with writing(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 - closed below
            weakref.finalize(self, self._file.close)
        for number, row in enumerate(rows, start=1):
            with naming_row(source, number):
                self._add(row, self._read(number, row))
        with writing(Path(tempfile.gettempdir())):
            self._file.flush()

    def _add(self, row: Row, example: Example) -> None:
        self.unread.update(count_unread([row], self._format))
        messages = (*example.messages, *example.rejected)
        is_ordered = bool(example.tools) or any(one.tool_calls for one in messages)
        line = _ORDERED + _written(row) if is_ordered else canonical(row)
        with writing(Path(tempfile.gettempdir())):
            self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        asked, learned = _hashes(example)
        self._asked.append(asked)
        self._learned.append(learned)
        for label in example.labels:
            self.first_with.setdefault(label, example.row)

    def __len__(self) -> int:
        return len(self._learned)

    def examples(self, places: Sequence[int]) -> Sequence[Example]:
        """Return the examples at these places; each is read from the file on access."""
        return LazySequence(len(places), lambda index: self._example(places[index]))

    def sha256(self, places: Sequence[int]) -> str:
        """Return the sha256 of the rows at these places, in order, as `content_sha256` does."""
        digest = hashlib.sha256()
        for line in self.lines(places):
            digest.update(line)
        return digest.hexdigest()

    def lines(self, places: Iterable[int]) -> Iterator[bytes]:
        """Yield the rows at these places as canonical JSON."""
        yield from map(self._canonical_line, places)

    def contents(self, places: Sequence[int]) -> "np.ndarray":
        """Return a hash of each row, int64 [places]: equal for equal rows, without labels."""
        return self.asked(places) if self.first_with else self.learned(places)

    def asked(self, places: Sequence[int]) -> "np.ndarray":
        """Return a hash of each row without the answer or the labels, int64 [places].

        Of a pair it is one of both answers, whichever is preferred; of a judged row, one of its
        answer.
        """
        return _at(self._asked, places)

    def learned(self, places: Sequence[int]) -> "np.ndarray":
        """Return a hash of each row with the answer or the labels, int64 [places]."""
        return _at(self._learned, places)

    def _example(self, place: int) -> Example:
        return self._read(place + 1, self._row(place))

    def _read(self, number: int, row: Row) -> Example:
        return read_example(number, row, self._format, self._turns, self._on_lost_answer)

    def _row(self, place: int) -> Row:
        row: Row = json.loads(self._line(place).decode("utf-8", "surrogatepass"))
        return row

    def _canonical_line(self, place: int) -> bytes:
        line = self._line(place)
        return canonical(self._row(place)) if line.startswith(_ORDERED) else line

    def _line(self, place: int) -> bytes:
        start, end = self._starts[place], self._starts[place + 1]
        return os.pread(self._file.fileno(), end - start, start)


def _hashes(example: Example) -> tuple[int, int]:
    """Return hashes of what is asked, and of that with its answer; equal ones for plain text."""
    if example.is_desirable is not None:
        judged = (example.messages, example.tools)
        return hash(judged), hash((*judged, example.is_desirable))
    if example.labels:
        return hash(example.text), hash((example.text, example.labels))
    if example.rejected:
        chosen, rejected, tools = example.messages, example.rejected, example.tools
        return hash((frozenset((chosen, rejected)), tools)), hash((chosen, rejected, tools))
    learned = hash((example.messages, example.text, example.tools))
    is_answered = bool(example.messages)
    return hash((example.prompt_messages, example.tools)) if is_answered else learned, learned


def _at(hashes: "array[int]", places: Sequence[int]) -> "np.ndarray":
    return np.frombuffer(hashes, dtype=np.int64)[np.asarray(places, dtype=np.int64)]


def canonical(row: Row) -> bytes:
    """Return a row as canonical JSON: sorted keys, UTF-8, one line."""
    return _written(row, sort_keys=True)


def _written(row: Row, *, sort_keys: bool = False) -> bytes:
    # Only Parquet and datasets have values that JSON lacks, such as dates.
    line = json.dumps(row, sort_keys=sort_keys, ensure_ascii=False, default=str)
    return line.encode("utf-8", "surrogatepass") + b"\n"
