"""Observe a training run: the end of each step, its loss, and its work."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import flop_counter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.harness.messages import Job, Outcome, Work
from tasks.runtime.measuring import peak_gpu_bytes

if TYPE_CHECKING:
    from torch import nn

_aten = torch.ops.aten


class Watch(TrainerCallback):
    """A Trainer callback that writes times, losses and work into an outcome."""

    def __init__(self, job: Job, outcome: Outcome) -> None:
        self._job = job
        self._outcome = outcome
        self._observing = ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Record the time, and start observing."""
        self._observing.enter_context(observed(kwargs["model"], self._job, self._outcome))
        self._outcome.training_began = now()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Record the time."""
        self._outcome.step_ends.append(now())

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Record the loss."""
        if logs and "loss" in logs:
            self._outcome.losses.append(float(logs["loss"]))

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Stop observing."""
        self._observing.close()


def now() -> float:
    """Return the seconds since 1970, once the GPU, if there is one, has done all that it got."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


@contextmanager
def observed(model: "nn.Module", job: Job, outcome: Outcome) -> Iterator[None]:
    """Measure the GPU's memory, and count or time what runs inside, if the job asks for it."""
    with (
        gpu_memory(outcome),
        counted(model, outcome) if job.counts else nullcontext(),
        profiled(outcome) if job.profiles else nullcontext(),
    ):
        yield


@contextmanager
def gpu_memory(outcome: Outcome) -> Iterator[None]:
    """Measure the most that this process has on the GPU inside, what it had before included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        outcome.peak_gpu_memory_mb = peak_gpu_bytes() / 1e6


@contextmanager
def profiled(outcome: Outcome) -> Iterator[None]:
    """Time each operator that runs inside."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield
    averages = profiler.key_averages()
    outcome.operators = {one.key: one.self_cpu_time_total / 1e6 for one in averages}


@contextmanager
def counted(model: "nn.Module", outcome: Outcome) -> Iterator[None]:
    """Count the FLOPs and the positions of what runs inside.

    Counting slows it down a little, so such a run is not timed. torch's counter sees each matrix
    product that goes through its dispatcher; `_MISSING` adds those that it does not know, and
    docs/speed.md names those that it cannot see.
    """
    work = Work()

    def count_positions(_: object, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        if torch.is_grad_enabled():
            work.num_forwards += 1
            work.num_tokens += inputs[0].numel()

    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    hook = embeddings.register_forward_hook(count_positions)
    try:
        with flop_counter.FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
            yield
    finally:
        hook.remove()
    work.flops = counter.get_total_flops()
    if work.num_forwards:
        outcome.work = work
    else:
        outcome.warnings.append("no forward pass used the embeddings, so nothing was counted")


def _products(*shape: int) -> int:
    """Return the FLOPs of a matrix product: a multiplication and an addition per element pair."""
    flops = 2
    for size in shape:
        flops *= size
    return flops


def _attention_flops(query: "torch.Size", key: "torch.Size", num_products: int) -> int:
    batch, heads, length, width = query
    return num_products * _products(batch, heads, length, key[-2], width)


def _cpu_attention(query: Any, key: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401
    return _attention_flops(query, key, 2)  # query by key, weights by value


def _cpu_attention_backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:  # noqa: ANN401
    return _attention_flops(query, key, 5)  # the weights again, and four gradients


def _in_place_product(_: Any, left: Any, right: Any, **__: Any) -> int:  # noqa: ANN401
    return _products(*left, right[-1])


# torch 2.13 counts neither the CPU's attention kernel nor in-place addmm and baddbmm.
_MISSING = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,  # noqa: SLF001
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,  # noqa: SLF001
    _aten.addmm_: _in_place_product,
    _aten.baddbmm_: _in_place_product,
}
