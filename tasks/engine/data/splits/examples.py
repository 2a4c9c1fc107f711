"""Examples to learn from: checked rows in a training and a held-out split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from tasks.config import LearningObjective, Task
from tasks.config.data import DataSettings, RowFormat
from tasks.engine.base import learnable_formats
from tasks.engine.data.rows import Row
from tasks.engine.data.splits.drawing import drawn_places
from tasks.engine.data.splits.kept_rows import KeptRows, canonical
from tasks.engine.data.splits.mixing import DrawnRows, Split, mixed, rows_to_take
from tasks.engine.data.splits.odd_rows import Oddity, odd_contents
from tasks.engine.data.splits.opened_sources import OpenedSource, open_held_out, open_sources
from tasks.engine.excerpts import excerpt
from tasks.errors import UserError
from tasks.records import LearnedData, OddRows

_SHOWN_LABELS = 5
_CLASSIFIED = (RowFormat.LABELLED, RowFormat.TAGGED)
_FIRST_ROWS = 1000
_REPLAYED = "replayed-"
"""Before the name of a source whose rows an earlier adapter learned from."""


@dataclass(frozen=True)
class ExampleSets:
    """The examples to train on and those to evaluate on."""

    train: Split
    eval: Split | None
    labels: tuple[str, ...] = ()
    """The classes, where rows are classified."""
    objective: LearningObjective = LearningObjective.SFT
    unread: Mapping[str, int] = field(default_factory=dict)
    """The number of rows with a value in a column that is not read, by the column's name."""
    odd: tuple[OddRows, ...] = ()
    """Duplicates, contradictions, and held-out rows that are trained on."""
    replayed: LearnedData | None = None
    """Where rows of an earlier adapter's training are among those to train on: what it learned."""

    @property
    def row_formats(self) -> tuple[RowFormat, ...]:
        """The formats of the training rows, in the order of the first source with each."""
        formats = (part.row_format for part in self.train.by_source)
        return tuple(dict.fromkeys(one for one in formats if one))

    @property
    def num_eval_rows_in_train(self) -> int:
        """The number of held-out examples that are also trained on, and so prove nothing."""
        return sum(one.num_rows for one in self.odd if one.kind == Oddity.TRAINED)

    @property
    def untrained_labels(self) -> tuple[str, ...]:
        """The classes that no training example has."""
        if not self.labels:
            return ()
        trained = {label for one in self.train.examples for label in one.labels}
        return tuple(label for label in self.labels if label not in trained)


def read_examples(  # noqa: PLR0913 - what is read, how, and what for
    settings: DataSettings,
    seed: int,
    task: Task = Task.CAUSAL_LM,
    labels: tuple[str, ...] = (),
    objective: LearningObjective = LearningObjective.SFT,
    learned: LearnedData | None = None,
) -> ExampleSets:
    """Read, check, split and mix the data; equal files, settings and seed give equal examples.

    Without `eval` and `eval_split`, `eval_fraction` of the rows of each source (at least one of two
    or more) are held out. All rows are checked, also those that are not used. If `eval` has splits,
    its `train` is read unless `eval_split` names another. Each source is read once, row by row, and
    not held in memory. Which of its rows are held out does not depend on the other sources.

    Args:
        settings: where the rows are, and how they are split.
        seed: of the split and the mix.
        task: what is learned from them.
        labels: the classes in order; those of the training rows, sorted, unless given.
        objective: whether answers are learned, or which of two is preferred.
        learned: what earlier adapters learned from, of which `settings.replay` is trained on.

    Raises:
        UserError: a source cannot be read, its columns fit no format, it is of another kind than
            the others, or a row is malformed or has an unknown class; the message names the row.

    """
    opened = open_sources(settings, task, objective)
    sources = [_used(one, one.checked(), seed) for one in opened]
    replayed = _replayed(learned, settings.replay, seed, task, objective) if learned else []
    if opened[0].row_format in _CLASSIFIED:
        labels = labels or _labels([*sources, *replayed])
        for one in [*sources, *replayed]:
            _check_labels(one.rows.first_with, labels, one.source)
    if settings.eval or settings.eval_split:
        apart = open_held_out(settings, task, opened, objective)
        kept = apart.checked()
        if labels:
            _check_labels(kept.first_with, labels, apart.source)
        held_out, rest = [_used(apart, kept, seed)], sources
    else:
        pairs = [_held_out(one, settings.eval_fraction, seed) for one in sources]
        held_out, rest = [one for one, _ in pairs], [other for _, other in pairs]
    trained = [*_taken(rest, settings, seed), *replayed]
    return ExampleSets(
        train=mixed(trained, seed),
        eval=mixed(held_out, seed) if any(one.places for one in held_out) else None,
        labels=labels,
        objective=objective,
        unread=_unread((*sources, *held_out), settings),
        odd=tuple(odd_contents(trained, held_out)),
        replayed=learned,
    )


def _replayed(
    learned: LearnedData, share: float, seed: int, task: Task, objective: LearningObjective
) -> list[DrawnRows]:
    """Return a share of the rows that earlier adapters learned from, of each of their sources.

    Args:
        learned: what the last one learned from.
        share: of all these rows, from 0 to 1.
        seed: of the draw.
        task: what is to be learned from them.
        objective: how it is.

    Raises:
        UserError: the rows are gone or have changed, or another task, or from rows of another kind,
            was learned.
    """
    if learned.task is not task:
        raise UserError(
            f"data.replay: the adapter to begin with learned {learned.task.value} from its rows, "
            f"and base_model.task is {task.value}; remove data.replay"
        )
    if learnable_formats(task, learned.objective) != learnable_formats(task, objective):
        raise UserError(
            f"data.replay: the adapter to begin with learned by objective {learned.objective}, "
            f"from other rows than those of training.objective {objective}; remove data.replay"
        )
    given = _read_again(learned)
    total = sum(len(one.places) for one in given)
    counts = rows_to_take(
        [len(one.places) for one in given], [None] * len(given), max(1, round(share * total))
    )
    return [
        replace(
            one,
            places=drawn_places(one.places, count, seed)[0],
            name=f"{_REPLAYED}{one.name.removeprefix(_REPLAYED)}",
            is_replayed=True,
        )
        for one, count in zip(given, counts, strict=True)
        if count
    ]


def _read_again(learned: LearnedData) -> list[DrawnRows]:
    """Return all rows that an adapter and those before it learned from, as they were then."""
    settings, seed, task = learned.settings, learned.seed, learned.task
    try:
        opened = open_sources(settings, task, learned.objective)
        sources = [_used(one, one.checked(), seed) for one in opened]
    except UserError as mistake:
        raise UserError(
            f"data.replay: the rows that the adapter to begin with learned from can't be read "
            f"again: {mistake}; restore them, or remove data.replay"
        ) from mistake
    # Rows held out in a file of their own leave the others as they are.
    if not (settings.eval or settings.eval_split):
        sources = [_held_out(one, settings.eval_fraction, seed)[1] for one in sources]
    taken = _taken(sources, settings, seed)
    for one, sha256 in zip(taken, learned.sources, strict=True):
        if one.rows.sha256(one.places) != sha256:
            raise UserError(
                f"data.replay: {one.source} has other rows than the adapter to begin with, or one "
                "before it, learned from; restore the file, or, if data.train still has them, "
                "remove data.replay"
            )
    # All of them, not the share that it replayed: over several trainings that would become a share
    # of a share, and what was learned first would be forgotten.
    if learned.replayed:
        taken += _read_again(learned.replayed)
    return taken


def check_first_rows(
    settings: DataSettings,
    task: Task = Task.CAUSAL_LM,
    labels: tuple[str, ...] = (),
    objective: LearningObjective = LearningObjective.SFT,
) -> tuple[RowFormat, ...]:
    """Check the first thousand rows of each source, to report most mistakes at once.

    Later rows, and whether there are two classes, are checked when the run reads the data.

    Args:
        settings: where the rows are.
        task: what is learned from them.
        labels: the classes in order; not checked unless given.
        objective: whether answers are learned, or which of two is preferred.

    Returns:
        The formats of the training rows.

    Raises:
        UserError: as `read_examples`.
    """
    opened = open_sources(settings, task, objective)
    if settings.eval or settings.eval_split:
        opened.append(open_held_out(settings, task, opened, objective))
    for one in opened:
        kept = one.checked(_FIRST_ROWS)
        if one.row_format in _CLASSIFIED and labels:
            _check_labels(kept.first_with, labels, one.source)
    return tuple(dict.fromkeys(one.row_format for one in opened[: len(settings.sources)]))


def _used(opened: OpenedSource, rows: KeptRows, seed: int) -> DrawnRows:
    """Return the rows of a source that are used: all, or `max_rows` of them."""
    source = opened.settings
    places, _ = drawn_places(range(len(rows)), source.max_rows or len(rows), seed)
    return DrawnRows(opened.source, source.short_name, opened.row_format, rows, places)


def _held_out(given: DrawnRows, fraction: float, seed: int) -> tuple[DrawnRows, DrawnRows]:
    """Return the held-out rows of a source, and the others."""
    total = len(given.places)
    count = min(max(1, round(fraction * total)), total - 1) if fraction else 0
    drawn, others = drawn_places(given.places, count, seed)
    return replace(given, places=drawn), replace(given, places=others)


def _taken(given: Sequence[DrawnRows], settings: DataSettings, seed: int) -> list[DrawnRows]:
    """Return the rows to train on, of those that are not held out."""
    weights = [one.weight for one in settings.sources]
    counts = rows_to_take([len(one.places) for one in given], weights, settings.max_train_rows)
    return [
        replace(one, places=drawn_places(one.places, count, seed)[0])
        for one, count in zip(given, counts, strict=True)
    ]


def _unread(used: Iterable[DrawnRows], settings: DataSettings) -> Counter[str]:
    """Count unread columns, each source once; those of `where` decide which rows are read."""
    sources = {id(one.rows): one.rows for one in used}
    found = sum((one.unread for one in sources.values()), Counter[str]())
    for column in settings.where:
        found.pop(excerpt(column), None)
    return found


def _labels(sources: Sequence[DrawnRows]) -> tuple[str, ...]:
    """Return the rows' classes, sorted: by value if all are numbers."""
    found = list(dict.fromkeys(chain.from_iterable(one.rows.first_with for one in sources)))
    if len(found) == 1:
        raise UserError(
            f"{', '.join(one.source for one in sources)}: all rows have the label {found[0]!r}; at "
            "least two different labels are needed"
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
