"""Examples to learn from: checked rows as chat messages, in a training and an evaluation split."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.config import Task
from tasks.config.data import DataSettings, RowFormat
from tasks.config.reading import is_hub_dataset
from tasks.engine.base.task_traits import traits_of
from tasks.engine.data.row_formats import BadRowError, Example, detect_row_format, read_example
from tasks.engine.data.row_sources import Row, read_rows
from tasks.engine.data.unread_columns import count_unread
from tasks.errors import UserError

_Numbered = list[tuple[Row, Example]]

_SHOWN_LABELS = 5
_CLASSIFIED = (RowFormat.LABELLED, RowFormat.TAGGED)


@dataclass(frozen=True)
class Split:
    """Examples with the content hash of the rows that they came from, in their order."""

    source: str
    sha256: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ExampleSets:
    """What is trained and what is evaluated on."""

    row_format: RowFormat
    train: Split
    eval: Split | None
    labels: tuple[str, ...] = ()
    """The classes, where rows are classified."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """In how many rows of the sources something stands that is not read, by the column's name."""

    @property
    def untrained_labels(self) -> tuple[str, ...]:
        """The classes that no training example has."""
        trained = {label for one in self.train.examples for label in one.labels}
        return tuple(label for label in self.labels if label not in trained)

    @property
    def num_eval_rows_in_train(self) -> int:
        """How many evaluation examples are trained on, too, and so prove nothing."""
        known = {(one.messages, one.text) for one in self.train.examples}
        held_out = self.eval.examples if self.eval else ()
        return sum((one.messages, one.text) in known for one in held_out)


def read_examples(
    settings: DataSettings,
    seed: int,
    task: Task = Task.CAUSAL_LM,
    labels: tuple[str, ...] = (),
) -> ExampleSets:
    """Read, check and split the data; equal files, settings and seed give equal examples.

    Without `eval` and `eval_split`, `eval_fraction` of the rows (at least one of two or more) are
    held out. Every row is checked, also those that `max_train_rows` leaves out. Of an `eval` that
    has splits, `train` is read.

    Args:
        settings: where the rows are, and how they are split.
        seed: of the split.
        task: what is learnt of them.
        labels: the classes in their order; those of the training rows, sorted, unless given.

    Raises:
        UserError: A source cannot be read, its columns fit no format, or a row is malformed or of
            no known class; the message names the row.

    """
    train_revision, eval_revision = _revisions(settings)
    rows = read_rows(settings.train, settings.train_split, train_revision)
    learnable = traits_of(task).row_formats
    row_format = detect_row_format(rows[0], settings.train, settings.format, learnable)
    numbered = _checked(rows, row_format, settings.train)
    if row_format in _CLASSIFIED:
        labels = labels or _labels(numbered, settings.train)
        _check_labels(numbered, labels, settings.train)
    unread = count_unread(rows, row_format)
    held_out: _Numbered = []
    if settings.eval or settings.eval_split:
        source, split = settings.eval or settings.train, settings.eval_split or "train"
        held_out_rows = read_rows(source, split, eval_revision)
        held_out = _checked(held_out_rows, row_format, source)
        unread += count_unread(held_out_rows, row_format)
        if row_format in _CLASSIFIED:
            _check_labels(held_out, labels, source)
    elif settings.eval_fraction > 0 and len(numbered) > 1:
        num_held_out = max(1, round(settings.eval_fraction * len(numbered)))
        held_out, numbered = _drawn(numbered, min(num_held_out, len(numbered) - 1), seed)
    if settings.max_train_rows is not None:
        numbered, _ = _drawn(numbered, min(settings.max_train_rows, len(numbered)), seed)
    return ExampleSets(
        row_format=row_format,
        train=_split(settings.train, numbered),
        eval=_split(settings.eval or settings.train, held_out) if held_out else None,
        labels=labels,
        unread=unread,
    )


def _labels(numbered: _Numbered, source: str) -> tuple[str, ...]:
    """Give the rows' classes, sorted: numbers as such, if all are."""
    found = {label for _, example in numbered for label in example.labels}
    if len(found) == 1:
        raise UserError(f"{source}: all rows have the label {found.pop()!r}; two are needed")
    if all(map(str.isdecimal, found)):
        return tuple(sorted(found, key=lambda label: (int(label), label)))  # `1` and `01` are two
    return tuple(sorted(found))


def _check_labels(numbered: _Numbered, labels: tuple[str, ...], source: str) -> None:
    known = set(labels)
    for _, example in numbered:
        if strange := next((label for label in example.labels if label not in known), None):
            few = ", ".join(labels[:_SHOWN_LABELS]) + (", …" if len(labels) > _SHOWN_LABELS else "")
            raise UserError(
                f"{source}, row {example.row}: the label {strange!r} is none of the "
                f"{len(labels)} classes ({few}); they are those of the training rows, or of "
                "base_model.labels"
            )


def content_sha256(rows: Sequence[Row]) -> str:
    """Hash rows in order as canonical JSON: sorted keys, UTF-8, one line a row."""
    digest = hashlib.sha256()
    for row in rows:
        # Only Parquet and datasets hold values that JSON lacks, such as dates.
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _revisions(settings: DataSettings) -> tuple[str | None, str | None]:
    """Tell which source the one `revision` is of: train unless only eval is on the Hub."""
    revision, other = settings.revision, settings.eval
    if revision is None or other is None or other == settings.train:
        return revision, revision
    if not is_hub_dataset(other):
        return revision, None
    if not is_hub_dataset(settings.train):
        return None, revision
    raise UserError(
        f"data.revision {revision!r} could be of {settings.train} or of {other}; remove it, or "
        "take the held-out rows from the same dataset by data.eval_split"
    )


def _drawn(items: _Numbered, count: int, seed: int) -> tuple[_Numbered, _Numbered]:
    """Draw by the seed; both the drawn and the others keep their order."""
    drawn = set(random.Random(seed).sample(range(len(items)), count))  # noqa: S311  # no secret
    return (
        [item for index, item in enumerate(items) if index in drawn],
        [item for index, item in enumerate(items) if index not in drawn],
    )


def _split(source: str, numbered: _Numbered) -> Split:
    return Split(
        source=source,
        sha256=content_sha256([row for row, _ in numbered]),
        examples=tuple(example for _, example in numbered),
    )


def _checked(rows: list[Row], row_format: RowFormat, source: str) -> _Numbered:
    checked = []
    for number, row in enumerate(rows, start=1):
        try:
            checked.append((row, read_example(number, row, row_format)))
        except BadRowError as error:
            raise UserError(f"{source}, row {number}: {error}") from error
    return checked
