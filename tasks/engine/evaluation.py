"""One model on held-out rows: its answers, and how likely it finds the expected ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import Template
from tasks.engine.adapter_set import AdapterSet
from tasks.engine.base_models import mixed_precision
from tasks.engine.batching import PaddedBatches, as_items, num_inputs
from tasks.engine.generation import answer
from tasks.engine.held_out import HeldOut
from tasks.engine.model_scores import ModelScores, RowScores
from tasks.engine.rendering import Renderer
from tasks.engine.tokenization import IGNORED, TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_TOKENS_AT_ONCE = 2048


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
    renderer = Renderer.of(prompter.tokenizer, prompter.template, held_out.row_format)
    settings = held_out.evaluation
    with adapters.using(name) as model:
        started = time.perf_counter()
        answers = answer(
            model,
            prompter.tokenizer,
            [renderer.prompt(example) for example in held_out.examples],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            adds_special_tokens=prompter.template is Template.PLAIN,
            on_progress=on_progress,
        )
        seconds = time.perf_counter() - started
        pad = int(prompter.tokenizer.pad_token_id)
        losses = row_losses(model, held_out.tokenized(renderer), pad, settings.batch_size)
    rows = [
        RowScores(
            answer=given,
            nats=nats,
            num_tokens=num_tokens,
            metrics={name: one(given, wanted) for name, one in held_out.metrics.items()},
        )
        for given, wanted, (nats, num_tokens) in zip(
            answers, held_out.expected, losses, strict=True
        )
    ]
    return Evaluation(ModelScores(held_out.expected, rows), seconds)


def row_losses(
    model: "PreTrainedModel", rows: Sequence[TokenizedRow], pad_token_id: int, batch_size: int
) -> list[tuple[float, int]]:
    """Give each row's cross entropy, summed over its labels, in nats, and how many these are."""
    import torch
    from torch.nn.functional import cross_entropy

    from tasks.engine.loss import labelled_logits

    items = as_items(rows)
    # The order in which `PaddedBatches` lays rows out, which sorts them stably.
    order = sorted(range(len(items)), key=lambda index: num_inputs(items[index]), reverse=True)
    batches = PaddedBatches(pad_token_id, _MAX_TOKENS_AT_ONCE)
    found: list[tuple[float, int]] = []
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = batches([items[index] for index in order[start : start + batch_size]])
        for part in batch["parts"]:
            here = {key: value.to(model.device) for key, value in part.items()}
            labels = here["labels"]
            with torch.inference_mode(), mixed_precision(model):
                logits = labelled_logits(model, here).flatten(0, 1).float()
                nats = cross_entropy(
                    logits, labels.flatten(), ignore_index=IGNORED, reduction="none"
                )
            counts = (labels != IGNORED).sum(dim=1).tolist()
            found += zip(nats.view(labels.shape).sum(dim=1).tolist(), counts, strict=True)
    by_row = dict(zip(order, found, strict=True))
    return [by_row[index] for index in range(len(rows))]
