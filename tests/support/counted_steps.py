"""Training steps on rows of the demo, with what they compute counted instead of timed."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from engine_steps import configured, loaded
from exact_training import plain
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.messages import Outcome
from benchmarks.harness.techniques import Engine
from benchmarks.harness.watching import counted
from tasks import engine
from tasks.config import BaseModelSettings, DataSettings, LoraSettings, TrainingSettings
from tasks.engine.batching import as_items, make_batches
from tasks.engine.training.trainer import AdapterTrainer

if TYPE_CHECKING:
    import pytest
    from transformers import PreTrainedModel

    from tasks.engine.data.tokens import PreparedData
    from tasks.records import InjectedRecord, TrainingPlan

DEMO = Path(__file__).parents[2] / "deployments" / "demo" / "train.jsonl"
NUM_ROWS = 16
BATCH_SIZE = 4
_RANK = 16


@dataclass(frozen=True)
class Work:
    """What was computed."""

    flops: int
    """Of matrix products and attentions."""
    num_kernels: int
    """Operators that compute or copy something, which a view doesn't."""
    largest_logits: int
    """Elements of the largest tensor over the vocabulary that one of them returned."""
    kept_bytes: int
    """Of what forward passes kept for the backward pass, the model's weights left out."""

    def exceeding(self, other: "Work", share: float) -> set[str]:
        """Return the names of what is more than another's by more than a share of it."""
        mine, others = asdict(self), asdict(other)
        return {name for name, value in mine.items() if value > (1 + share) * others[name]}


class _Operators(TorchDispatchMode):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.largest_logits = 0
        self._vocabulary = vocabulary

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.count += 1
            made = found if isinstance(found, tuple | list) else [found]
            for one in made:
                if isinstance(one, torch.Tensor) and one.shape[-1:] == (self._vocabulary,):
                    self.largest_logits = max(self.largest_logits, one.numel())
        return found


class Counter:
    """Adds up the work of what runs in its block, which may be entered again."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.flops = self.kept_bytes = 0
        self._model = model
        self._operators = _Operators(model.config.vocab_size)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs in the block."""
        outcome, kept = Outcome(), list[torch.Tensor]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)  # so that no other takes its place in memory
            return tensor

        with (
            counted(self._model, outcome),
            self._operators,
            saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            yield
        assert outcome.work is not None
        self.flops += outcome.work.flops
        sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in kept}
        for weight in self._model.parameters():
            sizes.pop(weight.untyped_storage().data_ptr(), None)
        self.kept_bytes += sum(sizes.values())

    @property
    def work(self) -> Work:
        """What was computed so far."""
        operators = self._operators
        return Work(self.flops, operators.count, operators.largest_logits, self.kept_bytes)


@dataclass(frozen=True)
class DemoSteps:
    """A tiny base with a fresh adapter, the first rows of the demo, and the engine's plan."""

    model: "PreTrainedModel"
    injected: "InjectedRecord"
    data: "PreparedData"
    plan: "TrainingPlan"

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, each with its complete prompt."""
        return sum(len(row.input_ids) for row in self.data.train.rows)

    def engine(self) -> Engine:
        """Return the engine with all techniques."""
        return Engine(self.plan)

    def of_engine(
        self, engine: Engine, prepared: Callable[["PreTrainedModel"], Any] = nullcontext
    ) -> Work:
        """Count one pass over the rows in the engine's way, in a context of the model's."""
        counter, rows = Counter(self.model), as_items(list(self.data.train.rows))
        pad = self.data.renderer.tokenizer.pad_token_id or 0
        batches = make_batches(engine.plan, pad)
        with engine.running(self.model.train()), prepared(self.model):
            for start in range(0, NUM_ROWS, BATCH_SIZE):
                for micro_batch in batches(rows[start : start + BATCH_SIZE])["micro_batches"]:
                    with counter.counting():
                        engine.loss(self.model, micro_batch).backward()
        self.model.zero_grad()
        return counter.work

    def of_transformers(self) -> Work:
        """Count one pass over the rows, padded, through transformers' loss and PEFT's layers."""
        counter, rows = Counter(self.model), list(self.data.train.rows)
        self.model.train()
        for start in range(0, NUM_ROWS, BATCH_SIZE):
            with counter.counting():
                plain(self.model, rows[start : start + BATCH_SIZE], "right")
        return counter.work

    @classmethod
    def made(cls, base: Path, folder: Path, patch: "pytest.MonkeyPatch") -> "tuple[Self, Work]":
        """Train one epoch with the pipeline's own steps; return them, and the work of step 4.

        Only forward and backward passes count, not what is verified before and after.
        """
        rows = folder / "rows.jsonl"
        rows.write_text("".join(DEMO.read_text().splitlines(keepends=True)[:NUM_ROWS]))
        settings = BaseModelSettings.model_validate({"source": str(base), "dtype": "bfloat16"})
        given = DataSettings.model_validate({"train": str(rows), "eval_fraction": 0})
        data = engine.prepare_data(given, settings, 0, folder / "tokens")
        model, record = loaded(base, settings)
        lora = LoraSettings.model_validate({"r": _RANK, "target_modules": "all-linear"})
        injected = engine.inject_adapter(
            model, configured(record, lora), folder / "initial" / "default.safetensors"
        )
        counter, plans = Counter(model), []
        step = AdapterTrainer.training_step

        def counted_step(trainer: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            plans.append(trainer._plan)
            with counter.counting():
                return step(trainer, *args, **kwargs)

        patch.setattr(AdapterTrainer, "training_step", counted_step)
        training = {"batch_size": BATCH_SIZE, "max_steps": math.ceil(NUM_ROWS / BATCH_SIZE)}
        engine.train_adapter(
            model,
            injected,
            data.record,
            TrainingSettings.model_validate(training),
            folder / "checkpoints",
        )
        return cls(model, injected, data, plans[0]), counter.work
