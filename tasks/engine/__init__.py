"""All that touches torch, transformers, peft and datasets; imports neither Prefect nor MLflow.

Its face is a complete run: `prepare_data` and the six steps, which pass one live model along.
"""

import logging
import os

# Read when torch loads its thread pool (GNU OpenMP). Idle threads spin while they wait for work.
# By default they spin so long that on cores shared with another busy process, each of a step's
# thousands of matrix products waits for a thread that is not running. Measured on two cores with
# the demo's model: a step takes 1.0 s alone, with long and short spinning alike; beside one busy
# process it takes over 6 s with long spinning and 2.7 s with short.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# On a CPU, PyTorch and oneDNN each cache the primitives of the last 1024 shapes of matrix products.
# Hardly two batches have the same shape, so after an hour of training the caches would hold a
# gigabyte. Within a step only a few dozen shapes recur, once per layer.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

# bitsandbytes 0.50, which PEFT imports, warns on CPUs with AVX512-BF16 that the package `kernels`
# is missing. It is not installed on purpose: with it, the import would fetch code from the Hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in str(record.msg)
)

from tasks.engine.late_compilation import compile_late  # noqa: E402 - beside what else is set here
from tasks.engine.steps import (  # noqa: E402 - torch reads the above when it is imported
    configure_lora,
    inject_adapter,
    load_adapter,
    load_base,
    prepare_data,
    save_adapter,
    train_adapter,
)

compile_late()

__all__ = [
    "configure_lora",
    "inject_adapter",
    "load_adapter",
    "load_base",
    "prepare_data",
    "save_adapter",
    "train_adapter",
]
