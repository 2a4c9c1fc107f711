"""The rows of one source, checked and set aside while they are read, so that they are read once.

Which rows train and which are held out is known only once all have been counted. Until then they
wait in a temporary file that has no name, as canonical JSON lines, and not in memory.
"""

import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tasks.config.data import RowFormat
from tasks.engine.data.lazy_sequence import LazySequence
from tasks.engine.data.row_formats import BadRowError, Example, read_example
from tasks.engine.data.row_sources import Row
from tasks.engine.data.unread_columns import count_unread
from tasks.errors import UserError
from tasks.runtime.atomic_files import writing


class KeptRows:
    """Rows that were read to their end; a row's place is from 0, its number from 1.

    Args:
        rows: of the source, in order.
        row_format: what each is read as.
        source: where they are from, for messages.

    Raises:
        UserError: a row is malformed; the message names it.
        AdapterflowError: there is no room for the temporary file.
    """

    def __init__(self, rows: Iterable[Row], row_format: RowFormat, source: str) -> None:
        self._format = row_format
        self._starts = array("q", [0])
        self._contents = array("q")
        self.first_with: dict[str, int] = {}
        """The number of the first row that has each label."""
        self.unread: Counter[str] = Counter()
        """In how many rows something stands that is not read, by the column's name."""
        with writing(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 - closed below
            weakref.finalize(self, self._file.close)
        for number, row in enumerate(rows, start=1):
            try:
                self._add(row, read_example(number, row, row_format))
            except BadRowError as error:
                raise UserError(f"{source}, row {number}: {error}") from error
        with writing(Path(tempfile.gettempdir())):
            self._file.flush()

    def _add(self, row: Row, example: Example) -> None:
        self.unread.update(count_unread([row], self._format))
        line = canonical(row)
        with writing(Path(tempfile.gettempdir())):
            self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        # 64 bits of what is learnt: which rows are equal, without keeping any.
        self._contents.append(hash((example.messages, example.text)))
        for label in example.labels:
            self.first_with.setdefault(label, example.row)

    def __len__(self) -> int:
        return len(self._contents)

    def examples(self, places: Sequence[int]) -> Sequence[Example]:
        """Return the examples at these places, each read again when it is asked for."""
        return LazySequence(len(places), lambda index: self._example(places[index]))

    def sha256(self, places: Sequence[int]) -> str:
        """Hash the rows at these places, in their order, as `content_sha256` does."""
        digest = hashlib.sha256()
        for place in places:
            digest.update(self._line(place))
        return digest.hexdigest()

    def contents(self, places: Sequence[int]) -> "np.ndarray":
        """Return a hash of what is learnt of each row, int64, equal where that is."""
        return np.frombuffer(self._contents, dtype=np.int64)[np.asarray(places, dtype=np.int64)]

    def _example(self, place: int) -> Example:
        row = json.loads(self._line(place).decode("utf-8", "surrogatepass"))
        return read_example(place + 1, row, self._format)

    def _line(self, place: int) -> bytes:
        start, end = self._starts[place], self._starts[place + 1]
        return os.pread(self._file.fileno(), end - start, start)


def canonical(row: Row) -> bytes:
    """Return a row as canonical JSON: sorted keys, UTF-8, one line."""
    # Only Parquet and datasets hold values that JSON lacks, such as dates.
    line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return line.encode("utf-8", "surrogatepass") + b"\n"
