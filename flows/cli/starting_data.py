"""The data that `init` is given: how its rows can be read, and what is not read of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.config.base_model import Task
from tasks.config.data import GENERATIVE, JUDGED, PREFERENCES, DataSource, RowFormat
from tasks.config.preferences import LearningObjective
from tasks.engine.data.rows import (
    Example,
    Row,
    columns_beside_text,
    columns_unread,
    detect_row_format,
    naming_row,
    possible_columns,
    read_example,
    read_rows,
    renamed_row,
    unread_text,
)
from tasks.engine.excerpts import excerpt
from tasks.errors import UserError

_LEARNABLE = (*GENERATIVE, RowFormat.TAGGED, *PREFERENCES, *JUDGED)
_TASKS = {
    RowFormat.TAGGED: Task.TOKEN_CLASSIFICATION,
    RowFormat.LABELLED: Task.SEQUENCE_CLASSIFICATION,
}


@dataclass(frozen=True)
class Reading:
    """One way to read the rows."""

    row_format: RowFormat
    columns: dict[str, str]
    """From our names to the file's, where they differ."""
    examples: Sequence[Example]

    @property
    def task(self) -> Task:
        """The task that learns from such rows."""
        return _TASKS.get(self.row_format, Task.CAUSAL_LM)

    @property
    def objective(self) -> LearningObjective:
        """What is learned from such rows."""
        if self.row_format in JUDGED:
            return LearningObjective.KTO
        return LearningObjective.DPO if self.row_format in PREFERENCES else LearningObjective.SFT

    def __str__(self) -> str:
        pairs = ", ".join(f"{ours} from {excerpt(name)}" for ours, name in self.columns.items())
        return f"{self.row_format} ({pairs})" if pairs else str(self.row_format)


@dataclass(frozen=True)
class StartingData:
    """Rows, and how they are read."""

    source: str
    rows: Sequence[Row]
    reading: Reading
    others: Sequence[Reading]
    """Less likely ways to read them."""
    refused: Sequence[str]
    """Why more likely ways can't be."""

    @property
    def short_name(self) -> str:
        """A name made from that of the file, the folder or the dataset."""
        return DataSource(path=self.source).short_name

    def notes(self) -> list[str]:
        """Describe how the rows are read, and what is not read of them."""
        lines = [f"{len(self.rows):,} rows of {self._name}, read as {self.reading}"]
        renamed = (renamed_row(row, self.reading.columns) for row in self.rows)
        if unread := columns_unread(renamed, self.reading.row_format):
            lines.append(f"not used: {unread_text(unread)}")
        lines += [f"not possible: {reason}" for reason in self.refused]
        if self.others:
            lines.append(f"could also be: {'; '.join(map(str, self.others))}")
        return lines

    @property
    def _name(self) -> str:
        return excerpt(Path(self.source).name)


def starting_data(source: str) -> StartingData:
    """Read all rows of a source in the most likely way.

    Raises:
        UserError: the source can't be read, its columns match no row format, or a row is malformed.
    """
    rows = read_rows(source, "train", None)
    found, refused = list[Reading](), list[UserError]()
    for columns in _possible(rows, source):
        try:
            found.append(_read(rows, columns, source))
        except UserError as mistake:
            if not found:
                refused.append(mistake)
    if not found:
        raise refused[0]
    likely, *others = found
    return StartingData(source, rows, likely, others, list(map(str, refused)))


def _possible(rows: Sequence[Row], source: str) -> list[dict[str, str]]:
    """Return what `data.columns` could be, the most likely first."""
    try:
        row_format = detect_row_format(rows[0], source, learnable=_LEARNABLE)
    except UserError:
        if found := possible_columns(rows):
            return found
        raise
    is_plain = row_format is RowFormat.TEXT and "label" not in rows[0]
    return columns_beside_text(rows) if is_plain else [{}]


def _read(rows: Sequence[Row], columns: dict[str, str], source: str) -> Reading:
    first = renamed_row(rows[0], columns)
    row_format = detect_row_format(first, source, learnable=_LEARNABLE)
    if row_format is RowFormat.TEXT and "label" in first:
        row_format = RowFormat.LABELLED
    examples = []
    for number, row in enumerate(rows, 1):
        with naming_row(source, number):
            examples.append(read_example(number, renamed_row(row, columns), row_format))
    return Reading(row_format, columns, examples)
