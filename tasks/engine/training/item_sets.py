"""The items of a training: what it draws in which order, and what it evaluates on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import LearningObjective, TrainingSettings
from tasks.engine.batching import RowOrder, row_order
from tasks.engine.data.splits import LazySequence
from tasks.engine.data.tokens import (
    PreparedData,
    TokenizedRow,
    TokenizedSplit,
    conversation_starts,
    row_lengths,
)
from tasks.engine.objectives import Objective
from tasks.engine.training.pairs import Pairs
from tasks.engine.training.plan import what_is_computed
from tasks.engine.training.reference import Answers, KeptReference, OnReference, reference_of
from tasks.engine.training.trainer import Rows
from tasks.records import InjectedRecord, TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Items = Rows | Pairs


@dataclass(frozen=True)
class ItemSets:
    """What is trained and evaluated on."""

    train: Items
    order: RowOrder
    eval: Items | None
    eval_sources: Mapping[str, Items] = field(default_factory=dict)
    """The held-out items of each source that has any, by its name."""
    reference: KeptReference | None = None
    """Of pairs."""


def item_sets(  # noqa: PLR0913 - a training has that many parts
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    settings: TrainingSettings,
    plan: TrainingPlan,
    *,
    task: Objective,
    folder: Path,
    on_reference: OnReference | None = None,
) -> ItemSets:
    """Return the rows of a training, or its pairs with their reference.

    Args:
        model: the model; to compute a reference, its adapter is reset to its initial weights.
        injected: the state of the model before training.
        data: the tokenized rows.
        settings: the training settings.
        plan: how rows are batched.
        task: the objective.
        folder: of the checkpoints, and of the reference.
        on_reference: called while the reference is computed.
    """
    if settings.objective is LearningObjective.SFT:
        return _rows(injected, data, settings, plan)
    num_pairs = len(data.train.rows) // 2
    lengths = row_lengths(data.train.rows).reshape(-1, 2).max(axis=1)
    order = _order(lengths, np.arange(num_pairs), injected, settings, plan)
    splits = {"train": Answers(data.train.rows, _seen(order, num_pairs, settings))}
    if data.eval:
        splits["eval"] = Answers(data.eval.rows, range(len(data.eval.rows) // 2))
    found = reference_of(
        model,
        injected,
        task,
        plan,
        splits,
        identity=what_is_computed(injected, data.record),
        pad_token_id=data.renderer.tokenizer.pad_token_id or 0,
        batch_size=settings.batch_size,
        folder=folder,
        on_reference=on_reference,
    )
    train = Pairs(data.train.rows, found.logps["train"])
    if data.eval is None:
        return ItemSets(train, order, None, reference=found.kept)
    rows, record = data.eval.rows, data.eval.record
    mean = record.num_chosen_tokens / record.num_rows
    return ItemSets(
        train,
        order,
        Pairs(rows, found.logps["eval"], mean),
        {
            name: Pairs(rows, found.logps["eval"], mean, places=(places[::2] // 2).tolist())
            for name, places in _by_source(data.eval).items()
        },
        found.kept,
    )


def _rows(
    injected: InjectedRecord, data: PreparedData, settings: TrainingSettings, plan: TrainingPlan
) -> ItemSets:
    rows = data.train.rows
    train = Rows(rows)
    order = _order(row_lengths(rows), conversation_starts(rows), injected, settings, plan)
    if data.eval is None:
        return ItemSets(train, order, None)
    held_out = data.eval.rows
    by_source = _by_source(data.eval)
    sources = {name: Rows(_at(held_out, places)) for name, places in by_source.items()}
    return ItemSets(train, order, Rows(held_out), sources)


def _order(
    lengths: "np.ndarray",
    starts: "np.ndarray",
    injected: InjectedRecord,
    settings: TrainingSettings,
    plan: TrainingPlan,
) -> RowOrder:
    return row_order(
        lengths,
        starts,
        plan.batching,
        injected.lora.seed,
        batch_size=settings.batch_size,
        accumulation_steps=settings.gradient_accumulation_steps,
    )


def _seen(order: RowOrder, num_items: int, settings: TrainingSettings) -> list[int]:
    """Return the items that a training will draw, ascending: all but of less than an epoch."""
    per_step = settings.batch_size * settings.gradient_accumulation_steps
    per_epoch = ceil(num_items / per_step)
    steps = settings.max_steps or ceil(settings.num_train_epochs * per_epoch)
    return sorted(islice(order, min(num_items, steps * per_step)))


def _by_source(split: TokenizedSplit) -> dict[str, "np.ndarray"]:
    """Return the rows of each source that has any, by its name."""
    found = {}
    for number, part in enumerate(split.record.by_source):
        places = np.flatnonzero(split.sources == number)
        if len(places):
            found[part.name] = places
    return found


def _at(rows: Sequence[TokenizedRow], places: "np.ndarray") -> LazySequence[TokenizedRow]:
    return LazySequence(len(places), lambda at: rows[int(places[at])])
