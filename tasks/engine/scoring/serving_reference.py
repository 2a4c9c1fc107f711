"""What a server has to reproduce of an adapter, computed while base and adapter are in memory.

A server may load an adapter and not use it, or render prompts by another template, without any
error. Log-probabilities of given tokens show the former, the answers to held-out rows both.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.config import Template
from tasks.engine.adapters import AdapterSet, LoadedAdapter
from tasks.engine.base import end_ids
from tasks.engine.data.rendering import Renderer, encode
from tasks.engine.data.rows import Example
from tasks.engine.data.tokens import IGNORED, TokenizedRow
from tasks.engine.objectives import Objective
from tasks.engine.scoring.evaluation import row_losses
from tasks.engine.scoring.held_out import HeldOut
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.engine.scoring.row_metrics import row_metrics
from tasks.records import Probe, ReplayRow, ServingReference

FIXED_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(first, second):\n    return first + second\n",
    "Water boils at 100 degrees Celsius; below zero degrees it turns to ice.",
)
"""Texts that any language model has an opinion on, and that no server has to render."""

_NUM_HELD_OUT = 3


def reference_for_serving(
    adapters: AdapterSet, name: str, held_out: HeldOut, base: ModelScores, adapter: ModelScores
) -> ServingReference:
    """Return what a server has to reproduce of an adapter that was scored on held-out rows.

    Args:
        adapters: one base with its adapters.
        name: the adapter.
        held_out: the rows.
        base: the base's scores on them.
        adapter: the adapter's.
    """
    loaded = adapters.adapters[name]
    ends = end_ids(adapters.base.location, adapters.base.revision)
    renderer = Renderer.of(
        loaded.tokenizer, loaded.template, held_out.row_format, ends, loaded.chat
    )
    rows = [
        _replayed(held_out.task, renderer, loaded, example, scores.answer)
        for example, scores in zip(held_out.examples, adapter.rows, strict=True)
    ]
    return ServingReference(
        answers=held_out.kind,
        max_new_tokens=held_out.evaluation.max_new_tokens,
        chat_template_kwargs=loaded.chat.chat_template_kwargs,
        fixed=tuple(_fixed(adapters, name, held_out)),
        held_out=tuple(_most_different(held_out, renderer, adapters, base, adapter)),
        rows=tuple(rows),
    )


def score_answers(reference: ServingReference, answers: Sequence[str]) -> ModelScores:
    """Return the scores of answers to the held-out rows; there are no losses without a model.

    Args:
        reference: the rows.
        answers: one for each.
    """
    expected = [one.expected for one in reference.rows]
    metrics = row_metrics(reference.answers, expected, {})
    rows = [
        RowScores(
            answer=answer,
            nll=0,
            num_tokens=1,
            metrics={name: one(answer, wanted) for name, one in metrics.items()},
        )
        for answer, wanted in zip(answers, expected, strict=True)
    ]
    return ModelScores(reference.answers, expected, rows)


def _fixed(adapters: AdapterSet, name: str, held_out: HeldOut) -> Iterator[Probe]:
    tokenizer = adapters.adapters[name].tokenizer
    ids = [encode(tokenizer, text, adds_special_tokens=True)[0] for text in FIXED_TEXTS]
    rows = [TokenizedRow(one, [IGNORED, *one[1:]]) for one in ids]
    found: list[list[float]] = []
    for one in (None, name):
        with adapters.using(one) as model:
            losses = row_losses(held_out.task, model, rows, int(tokenizer.pad_token_id), len(rows))
        found.append([-nll / number for nll, number in losses])
    for row, before, after in zip(ids, *found, strict=True):
        yield Probe(tokens=tuple(row), first=1, base=before, adapter=after)


def _most_different(
    held_out: HeldOut,
    renderer: Renderer,
    adapters: AdapterSet,
    base: ModelScores,
    adapter: ModelScores,
) -> Iterator[Probe]:
    """Yield the held-out rows whose expected answers an adapter changes most."""
    rows = held_out.tokenized(renderer, adapters.base)
    mean = [
        tuple(-one.rows[index].nll / one.rows[index].num_tokens for one in (base, adapter))
        for index in range(len(rows))
    ]
    order = sorted(range(len(rows)), key=lambda i: -abs(mean[i][1] - mean[i][0]))
    for index in order[:_NUM_HELD_OUT]:
        row, (before, after) = rows[index], mean[index]
        labeled = [place for place, label in enumerate(row.labels) if label != IGNORED]
        tokens = tuple(row.input_ids[: labeled[-1] + 1])
        yield Probe(tokens=tokens, first=labeled[0], base=before, adapter=after)


def _replayed(
    task: Objective, renderer: Renderer, adapter: LoadedAdapter, example: Example, answer: str
) -> ReplayRow:
    prompt = task.prompt(renderer, example)
    ids = prompt.tokens(adapter.tokenizer)
    messages = tuple(_sent(renderer, example)) if adapter.template is Template.CHAT else ()
    return ReplayRow(
        row=example.row,
        question=example.question,
        messages=messages,
        tools=tuple(json.loads(example.tools)) if example.tools else (),
        tokens=() if messages else tuple(ids),
        num_prompt_tokens=len(ids),
        opening=prompt.before.strip(),
        expected=task.expected(renderer, example),
        answer=answer,
    )


def _sent(renderer: Renderer, example: Example) -> Iterator[dict[str, Any]]:
    """Yield the messages before the answer as a client sends them."""
    for message in renderer.sent(example):
        given = message.for_template()
        for call, one in zip(given.get("tool_calls", ()), message.tool_calls, strict=True):
            call["function"]["arguments"] = one.arguments
        yield given
