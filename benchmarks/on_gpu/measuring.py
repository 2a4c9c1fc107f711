"""Measure the card, and a tool's training on it."""

import time
from importlib import import_module

import torch
from transformers import AutoConfig, LlamaConfig

from benchmarks.on_gpu.jobs import Prepared, prepared
from benchmarks.on_gpu.messages import Figures, Item, Place
from benchmarks.on_gpu.peers import PEERS
from benchmarks.on_gpu.shapes import num_linear_weights
from tasks.engine.base import device, release_memory
from tasks.runtime.measuring import peak_memory_bytes

_SIZE, _TINY_SIZE = 8192, 512
_PRODUCTS = 10
_FIRST_STEPS = 3
"""Which are not timed: the libraries choose kernels and claim memory in them."""


def card_flops_per_second() -> float:
    """Return the FLOP/s of square matrix products of random numbers, in bfloat16 on a GPU."""
    on_gpu = device().type == "cuda"
    size, dtype = (_SIZE, torch.bfloat16) if on_gpu else (_TINY_SIZE, torch.float32)
    left, right = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    for _ in range(_FIRST_STEPS):
        left @ right
    began = _now()
    for _ in range(_PRODUCTS):
        left @ right
    return _PRODUCTS * 2 * size**3 / (_now() - began)


def figures(item: Item, place: Place) -> Figures:
    """Train with a tool, and return what it reached."""
    peer, work = PEERS[item.name], prepared(item, place)
    options = peer.options[item.method]
    outcome = import_module(f"benchmarks.tools.{peer.module}").run(
        work.job.model_copy(update={"options": options})
    )
    release_memory()  # for the next item of this process
    ends, steps = outcome.step_ends, work.job.num_steps
    timed = ends[-1] - ends[_FIRST_STEPS - 1]
    share = (steps - _FIRST_STEPS) / steps
    flops = needed_flops(AutoConfig.from_pretrained(work.job.base), work)
    return Figures(
        num_tokens=work.num_tokens,
        num_trained_tokens=work.num_trained_tokens,
        tokens_per_second=share * work.num_tokens / timed,
        flops_per_second=share * flops / timed,
        peak_memory_mb=outcome.peak_gpu_memory_mb or peak_memory_bytes() / 1e6,
        losses=outcome.losses,
        seconds_training=ends[-1] - outcome.training_began,
        warnings=outcome.warnings,
    )


def needed_flops(config: LlamaConfig, work: Prepared) -> int:
    """Return the FLOPs that an adapter's training on the rows needs.

    Each token goes through each linear layer forward and backward, where frozen weights have no
    gradient, and each trained token through the output layer. Attention and the low-rank products
    are not counted (a few percent at these lengths), nor are padding and recomputation, which are
    a tool's own. What rows share is counted in each, so a tool that computes it once can be above
    what the card reaches.
    """
    forward_and_backward = 2 * 2
    layers = num_linear_weights(config) * work.num_tokens
    head = config.hidden_size * config.vocab_size * work.num_trained_tokens
    return forward_and_backward * (layers + head)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
