"""Whether the engine's ways of computing a step give the plain loss and gradients on this device.

The plain ones are those of transformers and PEFT, with eager attention, one row after the other, in
float32. In bfloat16 everything is rounded, so a way of ours passes there if it is at most twice as
far from the float32 result as plain bfloat16 is.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness.techniques import Engine
from benchmarks.on_gpu.messages import Place
from benchmarks.on_gpu.shapes import TINY, random_base
from tasks import engine
from tasks.config import BaseModelSettings, Batching, LoraSettings
from tasks.engine.base import mixed_precision
from tasks.engine.batching import as_items, make_batches
from tasks.engine.data.tokens import TokenizedRow
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = (9, 30, 31, 64, 100, 200)
_PREFIX = 24
_FLOAT32_TOLERANCE = 1e-4
_ROUNDED = 2.0
"""How many times as far from float32 as plain bfloat16."""
_INT8_TOLERANCE = 0.1
"""LLM.int8() picks its outliers by column, so a row's result depends on the others."""


class AbsentError(RuntimeError):
    """What a check needs is not there."""


class Compared(NamedTuple):
    """A result's distance from the reference, as a share of it, and the largest allowed."""

    difference: float
    tolerance: float


@dataclass(frozen=True)
class _Base:
    """How the base is held."""

    dtype: str = "bfloat16"
    quantization: str = "none"
    checkpointing: bool = False


@dataclass(frozen=True)
class _Way:
    """How a step is computed; see `harness.techniques`."""

    batching: Batching = Batching.PADDED
    chunks: bool = False
    fused: bool = False
    lean: bool = False

    @property
    def engine(self) -> Engine:
        plan = TrainingPlan(
            made_for="",
            batching=self.batching,
            prefix_length=_PREFIX if self.batching is Batching.SHARED_PREFIX else 0,
            batch_tokens=8192,
            loss_in_chunks=self.chunks,
            num_threads=1,
        )
        return Engine(plan, fused=self.fused, lean=self.lean)


_ALL = _Way(Batching.SHARED_PREFIX, chunks=True, fused=True, lean=True)
_QUANTIZED = _Way(lean=True)
"""As the engine trains on a quantized base in bfloat16: it does not pack there."""
_WAYS = {
    "padded rows": _Way(),
    "packed rows": _Way(Batching.PACKED),
    "shared prefix": _Way(Batching.SHARED_PREFIX),
    "loss in chunks": _Way(chunks=True),
    "adapter layers": _Way(fused=True),
    "norms and gates": _Way(lean=True),
    "all together": _ALL,
}


class _Step(NamedTuple):
    """The outcome of a step: the summed loss, and the gradients one after the other."""

    loss: float
    gradients: torch.Tensor

    def distance(self, reference: "_Step") -> float:
        """Return how far it is from a reference, as a share of it."""
        apart = (self.gradients - reference.gradients).norm() / reference.gradients.norm()
        return max(float(apart), abs(self.loss - reference.loss) / abs(reference.loss))


def _check(base: _Base, way: _Way) -> Callable[[Place], Compared]:
    def compared(place: Place) -> Compared:
        exact = _plain(place, _Base("float32", base.quantization))
        given = _computed(_model(place, base), way)
        if base.dtype == "float32":
            return Compared(given.distance(exact), _FLOAT32_TOLERANCE)
        rounded = _plain(place, _Base(base.dtype, base.quantization)).distance(exact)
        return Compared(given.distance(exact), _ROUNDED * rounded)

    return compared


def _int8(place: Place) -> Compared:
    base = _Base(quantization="8bit")
    given = _computed(_model(place, base), _QUANTIZED)
    return Compared(given.distance(_plain(place, base)), _INT8_TOLERANCE)


def _twice(place: Place) -> Compared:
    """Compute a step twice: with equal bytes a resumed training is the uninterrupted one."""
    model = _model(place, _Base())
    return Compared(_computed(model, _ALL).distance(_computed(model, _ALL)), 0.0)


CHECKS: dict[str, Callable[[Place], Compared]] = {
    **{
        f"{name}, {dtype}": _check(_Base(dtype), way)
        for dtype in ("float32", "bfloat16")
        for name, way in _WAYS.items()
    },
    "all together, checkpointing, bfloat16": _check(_Base(checkpointing=True), _ALL),
    "all together, 4-bit base, float32": _check(_Base("float32", "4bit"), _ALL),
    "4-bit base, bfloat16": _check(_Base(quantization="4bit"), _QUANTIZED),
    "8-bit base": _int8,
    "all together, twice": _twice,
}
"""By name, each with what it compares."""


@lru_cache
def _model(place: Place, base: _Base) -> "PreTrainedModel":
    """Return a base with an adapter that changes its answers, the same for every kind of base."""
    if base.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise AbsentError("bitsandbytes is not installed")
    settings = BaseModelSettings.model_validate(
        {
            "source": str(random_base(TINY, place.tokenizer, place.folder)),
            "dtype": base.dtype,
            "quantization": base.quantization,
            "gradient_checkpointing": base.checkpointing,
        }
    )
    model, record = engine.load_base(settings)
    lora = engine.configure_lora(LoraSettings(r=8, target_modules="all-linear"), record, 0)
    name = f"{base.dtype}-{base.quantization}-{base.checkpointing}.safetensors"
    engine.inject_adapter(model, lora, place.folder / "checks" / name)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:  # B is 0, so that A would have no gradient
            values = torch.randn(parameter.shape, generator=draw) * 0.05
            parameter.data.copy_(values)
    return model.train()  # type: ignore[no-any-return]


def _rows() -> list[TokenizedRow]:
    """Return rows of random tokens that begin alike; a third of each is the answer."""
    draw = torch.Generator().manual_seed(2)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in torch.randint(3, 250, (count,), generator=draw)]

    prefix = tokens(_PREFIX)
    rows = [[*prefix, *tokens(length)] for length in _LENGTHS]
    starts = [len(row) - length // 3 for row, length in zip(rows, _LENGTHS, strict=True)]
    return [
        TokenizedRow(row, [-100] * start + row[start:])
        for row, start in zip(rows, starts, strict=True)
    ]


@lru_cache
def _plain(place: Place, base: _Base) -> _Step:
    """Compute the step as transformers and PEFT do, one row after the other."""
    model, total = _model(place, base), 0.0
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public attribute
    model.set_attn_implementation("eager")
    for row in _rows():
        ids = torch.tensor([row.input_ids], device=model.device)
        labels = torch.tensor(row.labels[1:], device=model.device)
        with mixed_precision(model):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        loss.backward()
        total += loss.item()
    model.set_attn_implementation(before)
    return _Step(total, _taken(model))


def _computed(model: "PreTrainedModel", way: _Way) -> _Step:
    """Compute the step as the engine does."""
    batches, total = make_batches(way.engine.plan, 0), 0.0
    with way.engine.running(model):
        for micro_batch in batches(as_items(_rows()))["micro_batches"]:
            moved = {name: tensor.to(model.device) for name, tensor in micro_batch.items()}
            loss = way.engine.loss(model, moved)
            loss.backward()
            total += loss.item()
    return _Step(total, _taken(model))


def _taken(model: "PreTrainedModel") -> torch.Tensor:
    """Return the gradients of all that trains, and reset them."""
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(gradients).cpu()
