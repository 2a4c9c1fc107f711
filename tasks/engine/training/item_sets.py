"""The items of a training: what it draws in which order, and what it evaluates on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import LearningObjective, TrainingSettings
from tasks.engine.batching import RowOrder, row_order
from tasks.engine.data.splits import LazySequence
from tasks.engine.data.tokens import TokenizedRow, TokenizedSplit
from tasks.engine.training.inputs import Inputs
from tasks.engine.training.items import Items, Sharing
from tasks.engine.training.pairs import Pairs
from tasks.engine.training.reference import KeptReference, reference_of
from tasks.engine.training.rows import Rows

if TYPE_CHECKING:
    from tasks.records import TrainingPlan


@dataclass(frozen=True)
class ItemSets:
    """What is trained and evaluated on."""

    train: Items
    order: RowOrder
    eval: Items | None = None
    eval_sources: Mapping[str, Items] = field(default_factory=dict)
    """The held-out items of each source that has any, by its name."""
    reference: KeptReference | None = None
    """Of pairs."""


def item_sets(inputs: Inputs, plan: "TrainingPlan") -> ItemSets:
    """Return the rows of a training, or its pairs with their reference.

    To compute a reference, the model's adapter is reset to its initial weights.

    Raises:
        StoppedError: it was asked to stop while the reference was computed.
    """
    sharing = Sharing(
        inputs.task.make_batches(plan, inputs.pad_token_id), plan.batching, inputs.group
    )
    if inputs.settings.objective is LearningObjective.SFT:
        return _rows(inputs, sharing)
    return _pairs(inputs, plan, sharing)


def _rows(inputs: Inputs, sharing: Sharing) -> ItemSets:
    data = inputs.data
    train = Rows(data.train.rows, sharing)
    order = _order(train, inputs)
    if data.eval is None:
        return ItemSets(train, order)
    held_out = data.eval.rows
    by_source = _by_source(data.eval)
    sources = {name: Rows(_at(held_out, places), sharing) for name, places in by_source.items()}
    return ItemSets(train, order, Rows(held_out, sharing), sources)


def _pairs(inputs: Inputs, plan: "TrainingPlan", sharing: Sharing) -> ItemSets:
    data = inputs.data
    train = Pairs(data.train.rows, sharing)
    order = _order(train, inputs)
    needed = {"train": train.only(_seen(order, len(train), inputs.settings))}
    if data.eval is None:
        found = reference_of(inputs, plan, needed)
        return ItemSets(train.compared_with(found.logps["train"]), order, reference=found.kept)
    record = data.eval.record
    mean = record.num_chosen_tokens / record.num_rows
    held_out = Pairs(data.eval.rows, sharing, chosen_tokens=mean)
    found = reference_of(inputs, plan, {**needed, "eval": held_out})
    held_out = held_out.compared_with(found.logps["eval"])
    by_source = _by_source(data.eval)
    sources = {
        name: held_out.only((places[::2] // 2).tolist()) for name, places in by_source.items()
    }
    return ItemSets(train.compared_with(found.logps["train"]), order, held_out, sources, found.kept)


def _order(items: Items, inputs: Inputs) -> RowOrder:
    settings = inputs.settings
    return row_order(
        items.lengths,
        items.starts,
        items.sharing.batching,
        inputs.injected.lora.seed,
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
