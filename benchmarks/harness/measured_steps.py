"""A process that trains a few steps at a time and measures each: `… measured_steps JOB.json`.

It loads the base once, answers `Ready`, and then each `Trial` on its input with a `Trialed`. Timed
is what a step of Trainer computes: batches, forward, backward, clipping, the optimizer.
"""

import gc
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.harness.answering import answers_only
from benchmarks.harness.messages import Job, Ready, Trial, Trialed
from benchmarks.harness.techniques import TECHNIQUES, Engine
from benchmarks.tools.ours import sections
from tasks import engine
from tasks.config import BaseModelSettings, DataSettings, LoraSettings, TrainingSettings
from tasks.engine.adapters import adapter_state
from tasks.engine.base import release_memory
from tasks.engine.batching import as_items, make_batches, row_order
from tasks.engine.objectives import objective_of
from tasks.engine.training import Checkpoints, planned
from tasks.runtime.measuring import measured

if TYPE_CHECKING:
    from tasks.engine.batching import Batch, Row


class Bench:
    """A base with a fresh adapter, tokenized rows, and the plan that the engine made for them."""

    def __init__(self, job: Job) -> None:
        settings = sections(job)
        base_settings = BaseModelSettings.model_validate(settings["base_model"])
        data_settings = DataSettings.model_validate(settings["data"])
        data = engine.prepare_data(data_settings, base_settings, job.seed, job.folder / "tokens")
        self.model, base = engine.load_base(base_settings)
        lora_settings = LoraSettings.model_validate(settings["lora"])
        lora = engine.configure_lora(lora_settings, base, job.seed)
        injected = engine.inject_adapter(self.model, lora, job.folder / "initial.safetensors")
        training = TrainingSettings.model_validate(settings["training"])
        checkpoints = Checkpoints(job.folder / "checkpoints")
        self.engine = Engine(planned(checkpoints, self.model, injected, data, training))
        self._task = objective_of(base.settings.task)
        self._pad_token_id = data.renderer.tokenizer.pad_token_id or 0
        by_conversation = groupby(as_items(data.train.rows), _conversation)
        conversations = [list(rows) for _, rows in by_conversation]
        random.Random(job.seed).shuffle(conversations)  # noqa: S311 - no secret
        self._rows = [row for rows in conversations for row in rows]
        self._job, self._adapter = job, lora.adapter_name
        self._initial = adapter_state.load_weights(injected.initial_weights.path)
        # As `import_libraries` does at the start of each run.
        release_memory()
        gc.freeze()

    def in_use(self) -> list[str]:
        """Return the techniques that the engine uses on these rows."""
        return [name for name, one in TECHNIQUES.items() if one.without(self.engine) != self.engine]

    def measure(self, trial: Trial) -> Trialed:
        """Train a few steps from the adapter's initial weights, without one of the techniques."""
        off = TECHNIQUES[trial.without].without if trial.without else None
        engine = off(self.engine) if off else self.engine
        adapter_state.write_adapter(self.model, self._adapter, self._initial)
        self.model.train()
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self._job.learning_rate, fused=True)
        losses = []
        with engine.running(self.model):
            release_memory()
            with measured() as measurement:
                for batch in self._batches(engine, trial.first_batch, trial.num_steps):
                    losses.append(self._step(engine, batch))
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
        return Trialed(
            seconds=measurement.seconds,
            num_rows=trial.num_steps * self._job.batch_size,
            peak_memory_mb=measurement.peak_memory_bytes / 1e6,
            losses=losses,
        )

    def _step(self, engine: Engine, batch: "Batch") -> float:
        num_labels = int((batch["labels"] >= 0).sum())
        total = 0.0
        for micro_batch in batch["micro_batches"]:
            loss = engine.loss(self.model, micro_batch) / num_labels
            loss.backward()
            total += loss.item()
        return total

    def _batches(self, engine: Engine, first: int, count: int) -> Iterator["Batch"]:
        """Yield collated batches, with rows in the order that suits the kind of batching."""
        size = self._job.batch_size
        start = first * size
        rows: list[Row] = [
            self._rows[at % len(self._rows)] for at in range(start, start + count * size)
        ]
        batches = make_batches(engine.plan, self._pad_token_id)
        lengths = [batches.length(row) for row in rows]
        numbers = np.array([_conversation(row) for row in rows])
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        batching, seed = engine.plan.batching, self._job.seed
        order = list(row_order(lengths, starts, batching, seed, batch_size=size))
        for at in range(0, len(order), size):
            yield batches(self._chosen(rows, order[at : at + size]))

    @staticmethod
    def _chosen(rows: Sequence["Row"], places: Sequence[int]) -> list["Row"]:
        return [rows[place] for place in places]


def _conversation(row: "Row") -> int:
    return row["conversation"]


def main() -> None:
    """Answer trials until the input ends."""
    answers = answers_only()
    bench = Bench(Job.model_validate_json(Path(sys.argv[1]).read_text()))
    plan = bench.engine.plan
    ready = Ready(in_use=bench.in_use(), batching=plan.batching, batch_tokens=plan.batch_tokens)
    print(ready.model_dump_json(), file=answers, flush=True)
    for line in sys.stdin:
        trialed = bench.measure(Trial.model_validate_json(line))
        print(trialed.model_dump_json(), file=answers, flush=True)


if __name__ == "__main__":
    main()
