"""Evaluate one model on held-out rows: its answers, and its loss on the expected ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import Batching
from tasks.engine.adapters import AdapterSet
from tasks.engine.base import end_ids
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.tokens import IGNORED, TokenizedRow
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives import Objective
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
"""Padded micro-batches for evaluation, which work with every model; nothing here is a choice."""


@dataclass(frozen=True)
class Evaluation:
    """A model's scores, and the seconds that its answers took."""

    scores: ModelScores
    seconds_answering: float
    """Without tokenizing rows and computing their losses."""


def evaluate(
    adapters: AdapterSet,
    name: str | None,
    prompted_as: str,
    held_out: HeldOut,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score an adapter of the set, or the base, on all held-out rows.

    Args:
        adapters: one base with its adapters.
        name: the adapter to evaluate; None for the base.
        prompted_as: the adapter whose chat template and tokenizer render the prompts.
        held_out: the rows.
        on_progress: called after each batch with the number of prompts answered in it.

    Raises:
        UserError: a row can't be rendered or answered, or one of the user's metrics fails.
    """
    prompter = adapters.adapters[prompted_as]
    ends = end_ids(adapters.base.location, adapters.base.revision)
    renderer = Renderer.of(
        prompter.tokenizer, prompter.template, held_out.row_format, ends, prompter.chat
    )
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
            nll=nll,
            num_tokens=num_tokens,
            metrics={name: one(given.text, wanted) for name, one in held_out.metrics.items()},
        )
        for given, wanted, (nll, num_tokens) in zip(answers, expected, losses, strict=True)
    ]
    return Evaluation(ModelScores(held_out.kind, expected, rows), seconds)


def row_losses(
    task: Objective,
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    pad_token_id: int,
    batch_size: int,
) -> list[tuple[float, int]]:
    """Return each row's negative log-likelihood, summed over its labels, and their number.

    Args:
        task: the objective.
        model: the model; its active adapters take part.
        rows: the tokenized rows.
        pad_token_id: the tokenizer's.
        batch_size: rows per batch.

    Returns:
        (nats, labels) for each row, in the rows' order.
    """
    import torch

    from tasks.engine.batching import as_items

    items = as_items(rows)
    batches = task.make_batches(PADDED, pad_token_id)
    # `batches` sorts the rows of a batch the same way; since sorts are stable, rows that are sorted
    # already keep their order, and results can be assigned to them by position.
    order = sorted(range(len(items)), key=lambda index: batches.length(items[index]), reverse=True)
    found: list[tuple[float, int]] = []
    for start in range(0, len(order), batch_size):
        batch = batches([items[index] for index in order[start : start + batch_size]])
        for micro_batch in batch["micro_batches"]:
            here = {key: value.to(model.device) for key, value in micro_batch.items()}
            with eval_mode(model), torch.inference_mode():
                nll = task.label_nll(model, here)
            counts = (here["labels"] != IGNORED).sum(dim=1).tolist()
            found += zip(nll.sum(dim=1).tolist(), counts, strict=True)
    by_row = dict(zip(order, found, strict=True))
    return [by_row[index] for index in range(len(rows))]
