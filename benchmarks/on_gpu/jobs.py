"""The work of a training: base, rows and settings, the same for every tool."""

from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks.harness.messages import Job
from benchmarks.harness.prepare import write_rows
from benchmarks.harness.rows import IGNORED, tokens_and_labels
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.on_gpu.messages import Item, Place
from benchmarks.on_gpu.shapes import TINY, random_base
from tasks.engine.base import device


class Size(NamedTuple):
    """How much is trained on."""

    batch_size: int
    num_steps: int


_SIZES = {"demo": Size(32, 10), "long": Size(32, 12)}
"""About 4,000 and 8,000 tokens a step."""
_TINY_SIZE = Size(8, 8)
_TINY_RATE = 1e-2


class Prepared(NamedTuple):
    """A job, and what its rows hold."""

    job: Job
    num_tokens: int
    num_trained_tokens: int


def prepared(item: Item, place: Place) -> Prepared:
    """Make the base, write the rows, and return the job."""
    workload = WORKLOADS[item.workload]
    is_tiny = item.shape == TINY
    size = _TINY_SIZE if is_tiny else _SIZES[item.workload]
    rows = workload.rows(None, "train")[: size.batch_size * size.num_steps]
    folder = place.folder / "-".join(
        part for part in (item.shape, item.method, item.workload, item.name) if part
    )
    tokenizer = AutoTokenizer.from_pretrained(place.tokenizer)
    tokens = [tokens_and_labels(row, tokenizer, workload.max_length) for row in rows]
    job = Job(
        base=random_base(item.shape, place.tokenizer, place.folder),
        dtype="bfloat16" if device().type == "cuda" else "float32",
        train=write_rows(rows, folder / "train.jsonl"),
        held_out=folder / "none.jsonl",
        num_steps=size.num_steps,
        batch_size=size.batch_size,
        max_length=workload.max_length,
        learning_rate=_TINY_RATE if is_tiny else workload.learning_rate,
        folder=folder,
    )
    return Prepared(
        job,
        num_tokens=sum(len(row["input_ids"]) for row in tokens),
        num_trained_tokens=sum(x != IGNORED for row in tokens for x in row["labels"]),
    )
