"""One model on held-out rows: its answers, and how likely it finds the expected ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import Batching
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.base.base_models import end_ids
from tasks.engine.batching.batches import as_items
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.tokenization import IGNORED, TokenizedRow
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.objective import Objective
from tasks.engine.scoring.held_out import HeldOut
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDED = TrainingPlan(
    made_for="",
    batching=Batching.PADDED,
    prefix_length=0,
    batch_tokens=2048,
    loss_in_chunks=False,
    num_threads=0,
)
"""Rows of a batch as lines of a few thousand tokens at once."""


@dataclass(frozen=True)
class Evaluation:
    """What came out of a model."""

    scores: ModelScores
    seconds_answering: float


def evaluate(
    adapters: AdapterSet,
    name: str | None,
    prompted_as: str,
    held_out: HeldOut,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score an adapter of the set, or the base, on all rows.

    Args:
        adapters: one base with its adapters.
        name: the adapter that answers; None for the base.
        prompted_as: the adapter whose template and tokenizer the prompts are written with.
        held_out: the rows.
        on_progress: told how many more prompts are answered.

    Raises:
        UserError: a metric of the user's fails.
    """
    prompter = adapters.adapters[prompted_as]
    ends = end_ids(adapters.base.location, adapters.base.revision)
    renderer = Renderer.of(prompter.tokenizer, prompter.template, held_out.row_format, ends)
    settings = held_out.evaluation
    with adapters.using(name) as model:
        started = time.perf_counter()
        answers = held_out.task.answer(
            model,
            prompter.tokenizer,
            [held_out.task.prompt(renderer, example) for example in held_out.examples],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            on_progress=on_progress,
        )
        seconds = time.perf_counter() - started
        losses = row_losses(
            held_out.task,
            model,
            held_out.tokenized(renderer, adapters.base),
            int(prompter.tokenizer.pad_token_id),
            settings.batch_size,
        )
    expected = [held_out.task.expected(renderer, example) for example in held_out.examples]
    rows = [
        RowScores(
            answer=given.text,
            nats=nats,
            num_tokens=num_tokens,
            metrics={name: one(given.text, wanted) for name, one in held_out.metrics.items()},
        )
        for given, wanted, (nats, num_tokens) in zip(answers, expected, losses, strict=True)
    ]
    return Evaluation(ModelScores(held_out.kind, expected, rows), seconds)


def row_losses(
    task: Objective,
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    pad_token_id: int,
    batch_size: int,
) -> list[tuple[float, int]]:
    """Give each row's cross entropy, summed over its labels, in nats, and how many these are."""
    import torch

    items = as_items(rows)
    batches = task.make_batches(PADDED, pad_token_id)
    # The order in which parts have them, which a stable sort keeps.
    order = sorted(range(len(items)), key=lambda index: batches.length(items[index]), reverse=True)
    found: list[tuple[float, int]] = []
    for start in range(0, len(order), batch_size):
        batch = batches([items[index] for index in order[start : start + batch_size]])
        for part in batch["parts"]:
            here = {key: value.to(model.device) for key, value in part.items()}
            with eval_mode(model), torch.inference_mode():
                nats = task.label_nats(model, here)
            counts = (here["labels"] != IGNORED).sum(dim=1).tolist()
            found += zip(nats.sum(dim=1).tolist(), counts, strict=True)
    by_row = dict(zip(order, found, strict=True))
    return [by_row[index] for index in range(len(rows))]
