"""All that touches torch, transformers, peft and datasets; imports neither Prefect nor MLflow.

Its face is a whole run: `prepare_data` and the six steps, which hand one live model along.
"""

import os

# Read when torch loads its thread pool (GNU OpenMP). Idle threads spin for the next piece of work,
# by default so long that on cores that something else wants, too, each of a step's thousands of
# products waits for a thread that is not running. Measured on two cores, a step of the demo's
# model: 1.0 s alone with long and with short spinning; beside one busy process over 6 s with
# long, 2.7 s with short.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# PyTorch and oneDNN each keep what they prepared for the last 1024 shapes of a product on a CPU. No
# two batches of rows are of one shape: an hour's training would hold a gigabyte of these, and look
# through them. A step's own products, which come again in each layer, are some dozens.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

from tasks.engine.steps import (  # noqa: E402 - torch reads the above when it is imported
    configure_lora,
    inject_adapter,
    load_adapter,
    load_base,
    prepare_data,
    save_adapter,
    train_adapter,
)

__all__ = [
    "configure_lora",
    "inject_adapter",
    "load_adapter",
    "load_base",
    "prepare_data",
    "save_adapter",
    "train_adapter",
]
