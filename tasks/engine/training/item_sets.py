"""The items of a training: what it draws in which order, and what it evaluates on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import LearningObjective, LossType, TrainingSettings
from tasks.engine.base import limits_of
from tasks.engine.batching import RowOrder, row_order
from tasks.engine.data.splits import LazySequence
from tasks.engine.data.tokens import TokenizedRow, TokenizedSplit
from tasks.engine.training.compared import Compared
from tasks.engine.training.inputs import Inputs
from tasks.engine.training.items import Items, Sharing
from tasks.engine.training.judged import HeldOutJudged, Judged, JudgedRows, Mismatched, mismatches
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
    """Of preferences."""


def item_sets(inputs: Inputs, plan: "TrainingPlan") -> ItemSets:
    """Return the rows of a training, or its pairs, with their reference if they have one.

    To compute a reference, the model's adapter is reset to its initial weights.

    Raises:
        StoppedError: it was asked to stop while the reference was computed.
    """
    sharing = Sharing(
        inputs.task.make_batches(plan, inputs.pad_token_id), plan.batching, inputs.group
    )
    objective = inputs.settings.objective
    if objective is LearningObjective.SFT:
        return _rows(inputs, sharing)
    if objective is LearningObjective.KTO:
        return _judged(inputs, plan, sharing)
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
    needed: dict[str, Compared] = {"train": train.only(_seen(order, len(train), inputs.settings))}
    held_out = None
    if data.eval is not None:
        record = data.eval.record
        mean = record.num_chosen_tokens / record.num_rows
        held_out = needed["eval"] = Pairs(data.eval.rows, sharing, chosen_tokens=mean)
    if not inputs.settings.objective.has_reference:
        return _with_held_out(inputs, ItemSets(train, order), held_out)
    found = reference_of(inputs, plan, needed)
    sets = ItemSets(train.compared_with(found.logps["train"]), order, reference=found.kept)
    held_out = held_out.compared_with(found.logps["eval"]) if held_out else None
    return _with_held_out(inputs, sets, held_out)


def _judged(inputs: Inputs, plan: "TrainingPlan", sharing: Sharing) -> ItemSets:
    data, seed = inputs.data, inputs.injected.lora.seed
    needs_others = inputs.settings.preference_settings.loss_type == [LossType.KTO]
    judged = _judged_rows(data.train, inputs)
    train = Judged(judged, sharing, seed)
    order = _order(train, inputs)
    needed: dict[str, Compared] = {"train": train.only(_seen(order, len(train), inputs.settings))}
    mismatched = None
    if needs_others:
        steps = _steps(order, len(train), inputs.settings)
        drawn = (pair for step in steps for pair in mismatches(step, seed).items())
        mismatched = Mismatched(judged, sharing, sorted(dict.fromkeys(drawn)))
        needed["mismatched"] = mismatched
    held_out = None
    if data.eval is not None:
        kind = HeldOutJudged if needs_others else Judged
        held_out = needed["eval"] = kind(_judged_rows(data.eval, inputs), sharing, seed)
    found = reference_of(inputs, plan, needed)
    if mismatched:
        mismatched = mismatched.compared_with(found.logps["mismatched"])
    train = Judged(judged, sharing, seed, mismatched, found.logps["train"])
    held_out = held_out.compared_with(found.logps["eval"]) if held_out else None
    return _with_held_out(inputs, ItemSets(train, order, reference=found.kept), held_out)


def _judged_rows(split: TokenizedSplit, inputs: Inputs) -> JudgedRows:
    examples = (split.examples[place] for place in range(len(split.rows)))
    are_desirable = np.array([bool(one.is_desirable) for one in examples])
    most = inputs.data.record.settings.max_length
    positions = limits_of(inputs.injected.lora.base).fixed_positions
    return JudgedRows(split.rows, are_desirable, min(most, positions or most))


def _with_held_out(inputs: Inputs, sets: ItemSets, held_out: Compared | None) -> ItemSets:
    if inputs.data.eval is None or held_out is None:
        return sets
    size = inputs.data.record.rows_per_item
    by_source = _by_source(inputs.data.eval)
    sources = {
        name: held_out.only((places[::size] // size).tolist()) for name, places in by_source.items()
    }
    return replace(sets, eval=held_out, eval_sources=sources)


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
    first_epoch = islice(_steps(order, num_items, settings), ceil(num_items / _per_step(settings)))
    return sorted(item for step in first_epoch for item in step)


def _steps(order: RowOrder, num_items: int, settings: TrainingSettings) -> Iterator[list[int]]:
    """Yield the items of each optimizer step of a training."""
    per_step = _per_step(settings)
    per_epoch = ceil(num_items / per_step)
    left = settings.max_steps or ceil(settings.num_train_epochs * per_epoch)
    for epoch in count():
        order.set_epoch(epoch)
        items = list(order)
        order.set_epoch(0)
        for start in range(0, num_items, per_step):
            if not left:
                return
            left -= 1
            yield items[start : start + per_step]


def _per_step(settings: TrainingSettings) -> int:
    return settings.batch_size * settings.gradient_accumulation_steps


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
