"""Examples to learn from: checked rows in a training and a held-out split."""

import hashlib
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from tasks.config import Task
from tasks.config.data import DataSettings, RowFormat
from tasks.config.reading import is_hub_dataset
from tasks.engine.base.task_traits import traits_of
from tasks.engine.data.column_names import renamed
from tasks.engine.data.conversations import Example
from tasks.engine.data.kept_rows import KeptRows, canonical
from tasks.engine.data.row_formats import detect_row_format
from tasks.engine.data.row_sources import Row, iter_rows
from tasks.errors import UserError

_SHOWN_LABELS = 5
_CLASSIFIED = (RowFormat.LABELLED, RowFormat.TAGGED)
_FIRST_ROWS = 1000


@dataclass(frozen=True)
class Split:
    """Examples, with their source and the content hash of their rows in order."""

    source: str
    sha256: str
    examples: Sequence[Example] = field(compare=False)


@dataclass(frozen=True)
class ExampleSets:
    """The examples to train on and those to evaluate on."""

    row_format: RowFormat
    train: Split
    eval: Split | None
    labels: tuple[str, ...] = ()
    """The classes, where rows are classified."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """The number of rows with a value in a column that is not read, by the column's name."""
    num_eval_rows_in_train: int = 0
    """The number of held-out examples that are also trained on, and so prove nothing."""

    @property
    def untrained_labels(self) -> tuple[str, ...]:
        """The classes that no training example has."""
        if not self.labels:
            return ()
        trained = {label for one in self.train.examples for label in one.labels}
        return tuple(label for label in self.labels if label not in trained)


def read_examples(
    settings: DataSettings,
    seed: int,
    task: Task = Task.CAUSAL_LM,
    labels: tuple[str, ...] = (),
) -> ExampleSets:
    """Read, check and split the data; equal files, settings and seed give equal examples.

    Without `eval` and `eval_split`, `eval_fraction` of the rows (at least one of two or more) are
    held out. All rows are checked, also those beyond `max_train_rows`. If `eval` has splits, its
    `train` is read unless `eval_split` names another. Each source is read once, row by row, and not
    held in memory.

    Args:
        settings: where the rows are, and how they are split.
        seed: of the split.
        task: what is learned from them.
        labels: the classes in order; those of the training rows, sorted, unless given.

    Raises:
        UserError: a source cannot be read, its columns fit no format, or a row is malformed or has
            an unknown class; the message names the row.

    """
    row_format, rows = _opened(settings, task)
    kept = _kept(rows, row_format, settings.train, settings)
    if row_format in _CLASSIFIED:
        labels = labels or _labels(kept.first_with, settings.train)
        _check_labels(kept.first_with, labels, settings.train)
    train: Sequence[int] = range(len(kept))
    held_out_rows, held_out = kept, train[:0]
    if settings.eval or settings.eval_split:
        source = settings.eval or settings.train
        held_out_rows = _kept(_held_out_rows(settings), row_format, source, settings)
        held_out = range(len(held_out_rows))
        if row_format in _CLASSIFIED:
            _check_labels(held_out_rows.first_with, labels, source)
    elif settings.eval_fraction > 0 and len(kept) > 1:
        num_held_out = max(1, round(settings.eval_fraction * len(kept)))
        held_out, train = _drawn(train, min(num_held_out, len(kept) - 1), seed)
    if settings.max_train_rows is not None:
        train, _ = _drawn(train, min(settings.max_train_rows, len(train)), seed)
    seen = np.isin(held_out_rows.contents(held_out), kept.contents(train))
    return ExampleSets(
        row_format=row_format,
        train=_split(settings.train, kept, train),
        eval=_split(settings.eval or settings.train, held_out_rows, held_out) if held_out else None,
        labels=labels,
        unread=kept.unread + held_out_rows.unread if held_out_rows is not kept else kept.unread,
        num_eval_rows_in_train=int(seen.sum()),
    )


def check_first_rows(
    settings: DataSettings, task: Task = Task.CAUSAL_LM, labels: tuple[str, ...] = ()
) -> RowFormat:
    """Check the first thousand rows of each source, to report most mistakes at once.

    Later rows, and whether there are two classes, are checked when the run reads the data.

    Args:
        settings: where the rows are.
        task: what is learned from them.
        labels: the classes in order; not checked unless given.

    Returns:
        The format of the rows.

    Raises:
        UserError: as `read_examples`.
    """
    row_format, rows = _opened(settings, task)
    sources = [(settings.train, rows)]
    if settings.eval or settings.eval_split:
        sources.append((settings.eval or settings.train, _held_out_rows(settings)))
    for source, given in sources:
        kept = _kept(islice(given, _FIRST_ROWS), row_format, source, settings)
        if row_format in _CLASSIFIED and labels:
            _check_labels(kept.first_with, labels, source)
    return row_format


def _opened(settings: DataSettings, task: Task) -> tuple[RowFormat, Iterator[Row]]:
    """Return the format of the training rows, and all of them."""
    revision, _ = _revisions(settings)
    rows = renamed(iter_rows(settings.train, settings.train_split, revision), settings.columns)
    first = next(rows)
    learnable = traits_of(task).row_formats
    row_format = detect_row_format(first, settings.train, settings.format, learnable)
    return row_format, chain([first], rows)


def _held_out_rows(settings: DataSettings) -> Iterator[Row]:
    _, revision = _revisions(settings)
    source, split = settings.eval or settings.train, settings.eval_split or "train"
    return renamed(iter_rows(source, split, revision), settings.columns)


def _kept(
    rows: Iterable[Row], row_format: RowFormat, source: str, settings: DataSettings
) -> KeptRows:
    return KeptRows(rows, row_format, source, settings.turns, settings.on_lost_answer)


def _labels(found: Mapping[str, int], source: str) -> tuple[str, ...]:
    """Return the rows' classes, sorted: by value if all are numbers."""
    if len(found) == 1:
        raise UserError(
            f"{source}: all rows have the label {next(iter(found))!r}; at least two different "
            "labels are needed"
        )
    if all(map(str.isdecimal, found)):
        return tuple(sorted(found, key=lambda label: (int(label), label)))  # `1` and `01` are two
    return tuple(sorted(found))


def _check_labels(found: Mapping[str, int], labels: tuple[str, ...], source: str) -> None:
    known = set(labels)
    for label, row in found.items():
        if label not in known:
            few = ", ".join(labels[:_SHOWN_LABELS]) + (", …" if len(labels) > _SHOWN_LABELS else "")
            raise UserError(
                f"{source}, row {row}: the label {label!r} is none of the "
                f"{len(labels)} classes ({few}), which are those of base_model.labels or else of "
                "the training rows; correct the row, or add the class"
            )


def content_sha256(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows in order, as canonical JSON: sorted keys, UTF-8, one line a row."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row))
    return digest.hexdigest()


def _revisions(settings: DataSettings) -> tuple[str | None, str | None]:
    """Return the revisions of train and eval: of those two, `data.revision` is the Hub dataset's.

    Raises:
        UserError: they are two different Hub datasets.
    """
    revision, other = settings.revision, settings.eval
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


def _drawn(places: Sequence[int], count: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Draw places by the seed; return the drawn and the others, each in their order."""
    drawn = np.zeros(len(places), dtype=bool)
    drawn[random.Random(seed).sample(range(len(places)), count)] = True  # noqa: S311  # no secret
    all_places = np.asarray(places, dtype=np.int64)
    return array("q", all_places[drawn].tobytes()), array("q", all_places[~drawn].tobytes())


def _split(source: str, rows: KeptRows, places: Sequence[int]) -> Split:
    return Split(source, rows.sha256(places), rows.examples(places))
