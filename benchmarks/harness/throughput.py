"""Measure matrix throughput at the base's shapes: `… benchmarks.harness.throughput REQUEST`.

One pass runs the model's own linear layers in order, each once on a batch's positions (as in the
forward pass) and once on their gradient (as in the backward pass of frozen weights), with nothing
in between. A training run's rate relative to it is its share of the machine's throughput.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Throughput, ThroughputRequest

_SECONDS_A_FIGURE = 2.0
_PASSES_AT_LEAST = 3


def throughputs(request: ThroughputRequest) -> Iterator[Throughput]:
    """Measure each requested number of positions."""
    shapes = layer_shapes(request.base)
    for count in request.num_tokens:
        bfloat16, float32 = (
            measure(shapes, count, dtype) for dtype in (torch.bfloat16, torch.float32)
        )
        yield Throughput(num_tokens=count, bfloat16=bfloat16, float32=float32)


def layer_shapes(base: Path) -> list[tuple[int, int]]:
    """Return (out, in) of each linear layer except the output layer, in the model's order."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    head = model.get_output_embeddings()
    return [
        (module.out_features, module.in_features)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def measure(shapes: list[tuple[int, int]], num_tokens: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the median pass over the layers."""
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    sizes = {size for shape in shapes for size in shape}
    positions = {size: torch.randn(num_tokens, size).to(dtype) for size in sizes}

    def forward_and_backward() -> None:
        for weight in weights:
            positions[weight.shape[1]] @ weight.T
            positions[weight.shape[0]] @ weight

    flops = 2 * sum(2 * num_tokens * math.prod(shape) for shape in shapes)
    return flops / _median_seconds(forward_and_backward)


def _median_seconds(work: Callable[[], None]) -> float:
    work()
    taken: list[float] = []
    while sum(taken) < _SECONDS_A_FIGURE or len(taken) < _PASSES_AT_LEAST:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    answer(throughputs(read_request(ThroughputRequest)))
