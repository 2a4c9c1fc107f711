"""Load one adapter under many names: `python -m benchmarks.harness.many_adapters REQUEST.json`."""

import time

import peft  # noqa: F401 - its import takes seconds, not part of loading an adapter

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Loading, LoadingRequest
from tasks.config import BaseModelSettings
from tasks.engine.adapters import load_adapter
from tasks.engine.base import find_base, load_base
from tasks.runtime.measuring import peak_memory_bytes


def load_many(request: LoadingRequest) -> Loading:
    """Load the base, then the adapters, and measure loading the adapters."""
    settings = BaseModelSettings.model_validate(
        {"source": str(request.base), "dtype": request.dtype}
    )
    model = load_base(find_base(settings))
    began = time.perf_counter()
    for number in range(request.num_adapters):
        load_adapter(model, request.adapter, f"adapter-{number}")
    seconds = time.perf_counter() - began
    return Loading(seconds=seconds, peak_memory_mb=peak_memory_bytes() / 1e6)


if __name__ == "__main__":
    answer([load_many(read_request(LoadingRequest))])
