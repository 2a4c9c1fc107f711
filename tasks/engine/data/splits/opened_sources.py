"""The sources of a run's rows: opened, each with its format, and checked to fit together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from tasks.config import LearningObjective, Task
from tasks.config.data import DataSettings, DataSource, OnLostAnswer, RowFormat, Turns
from tasks.config.reading import is_hub_dataset
from tasks.engine.base import learnable_formats
from tasks.engine.data.rows import (
    Row,
    detect_row_format,
    iter_rows,
    matching_rows,
    renamed,
    where_text,
)
from tasks.engine.data.splits.kept_rows import KeptRows
from tasks.errors import UserError


@dataclass(frozen=True)
class OpenedSource:
    """A source of which only the first row has been read, to detect the format."""

    settings: DataSource
    row_format: RowFormat
    rows: Iterator[Row]
    turns: Turns = Turns.ALL
    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR
    is_labeled: bool = False
    """Whether its rows are texts with labels, although the labels are not read."""
    where: str = ""
    """Which rows of the source these are, for messages."""

    @property
    def source(self) -> str:
        """The path or the Hub id, and which of its rows are meant; their numbers count those."""
        return self.settings.path + self.where

    def checked(self, at_most: int | None = None) -> KeptRows:
        """Read and check the rows, or the first of them.

        Raises:
            UserError: a row is malformed; the message names it.
        """
        rows = islice(self.rows, at_most)
        return KeptRows(rows, self.row_format, self.source, self.turns, self.on_lost_answer)


def open_sources(
    settings: DataSettings, task: Task, objective: LearningObjective = LearningObjective.SFT
) -> list[OpenedSource]:
    """Open the sources of the training rows, and detect their formats.

    Args:
        settings: where the rows are.
        task: what the model is for.
        objective: what it learns from them.

    Raises:
        UserError: one cannot be read, has no format of the task, or does not fit the others.
    """
    formats = learnable_formats(task, objective)
    if isinstance(settings.train, str):
        revision, _ = _revisions(settings)
        (only,) = settings.sources
        return [_open(only.model_copy(update={"revision": revision}), settings, formats)]
    opened: list[OpenedSource] = []
    for one in settings.sources:
        opened.append(_open(one, settings, formats, opened[0] if opened else None))
    labeled = [one for one in opened if one.is_labeled]
    if labeled and len(labeled) < len(opened):
        other = next(one for one in opened if not one.is_labeled)
        raise UserError(
            f"{labeled[0].source} has texts with labels, but {other.source} has {other.row_format} "
            "rows; one training learns one task: remove one of the two, or set format: text of the "
            "first to learn its texts without the labels"
        )
    return opened


def _open(
    source: DataSource,
    settings: DataSettings,
    learnable: Sequence[RowFormat],
    beside: OpenedSource | None = None,
) -> OpenedSource:
    """Open a source; `beside` is another one of the same training."""
    rows = _rows(source, settings)
    first = next(rows)
    wanted = source.format or settings.format
    try:
        row_format = detect_row_format(first, source.path, wanted, learnable)
    except UserError as mistake:
        if beside is None:
            raise
        raise UserError(
            f"{mistake}; the sources of data.train must be of one kind, and {beside.source} has "
            f"{beside.row_format} rows"
        ) from mistake
    is_labeled = wanted is RowFormat.AUTO and row_format is RowFormat.TEXT and "label" in first
    return _opened(source, row_format, chain([first], rows), settings, is_labeled=is_labeled)


def _opened(
    source: DataSource,
    row_format: RowFormat,
    rows: Iterator[Row],
    settings: DataSettings,
    *,
    is_labeled: bool = False,
) -> OpenedSource:
    turns, on_lost_answer = settings.turns, settings.on_lost_answer
    where = where_text(settings.where)
    return OpenedSource(source, row_format, rows, turns, on_lost_answer, is_labeled, where)


def _matching(source: DataSource, settings: DataSettings) -> Iterator[Row]:
    rows = iter_rows(source.path, source.split, source.revision)
    return matching_rows(rows, settings.where, source.path)


def _rows(source: DataSource, settings: DataSettings) -> Iterator[Row]:
    rows = _matching(source, settings)
    is_own = source.columns != settings.columns
    return renamed(rows, source.columns, f"{source.path}: columns" if is_own else "data.columns")


def open_held_out(
    settings: DataSettings,
    task: Task,
    opened: Sequence[OpenedSource],
    objective: LearningObjective = LearningObjective.SFT,
) -> OpenedSource:
    """Open the held-out rows, which have the format of the training rows where those have one."""
    source = _held_out_source(settings)
    formats = {one.row_format for one in opened}
    if len(formats) > 1:
        return _open(source, settings, learnable_formats(task, objective), opened[0])
    return _opened(source, formats.pop(), _rows(source, settings), settings)


def training_rows(settings: DataSettings) -> Iterator[Row]:
    """Return the rows of the only source of training rows as they are, unchecked.

    Raises:
        UserError: it cannot be read.
    """
    revision, _ = _revisions(settings)
    (only,) = settings.sources
    return _matching(only.model_copy(update={"revision": revision}), settings)


def held_out_rows(settings: DataSettings) -> Iterator[Row]:
    """Return the held-out rows as `training_rows` does; `eval` or `eval_split` names them."""
    return _matching(_held_out_source(settings), settings)


def _held_out_source(settings: DataSettings) -> DataSource:
    _, revision = _revisions(settings)
    return DataSource(
        path=settings.eval or settings.sources[0].path,
        split=settings.eval_split or "train",
        revision=revision,
        columns=settings.columns,
    )


def _revisions(settings: DataSettings) -> tuple[str | None, str | None]:
    """Return the revisions of train and eval: of those two, `data.revision` is the Hub dataset's.

    Raises:
        UserError: they are two different Hub datasets.
    """
    revision, other = settings.revision, settings.eval
    if not isinstance(settings.train, str):  # each has its own
        return None, revision
    if revision is None or other is None or other == settings.train:
        return revision, revision
    if not is_hub_dataset(other):
        return revision, None
    if not is_hub_dataset(settings.train):
        return None, revision
    raise UserError(
        f"data.revision {revision!r} could be of {settings.train} or of {other}; remove it, or "
        "take the held-out rows from the same dataset with data.eval_split"
    )
