"""What is asked of a worker, and what it found, as JSON."""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from benchmarks.harness.machine import Machine
from benchmarks.harness.messages import Message


class State(StrEnum):
    """What became of an item."""

    MEASURED = "measured"
    PASSED = "passed"
    FAILED = "failed"
    """The computation is not exact."""
    ERROR = "error"
    """It came to no result: an exception, out of memory, no answer in time."""
    ABSENT = "absent"
    """A library, or the GPU, that it needs is not there."""
    LEFT_OUT = "left out"
    """Too little time was left."""


class Item(Message):
    """One line of the results: a check, or a tool that trains."""

    kind: Literal["card", "check", "training"]
    name: str
    """The check's or the tool's."""
    shape: str = ""
    """Of the base, in `shapes.SHAPES`."""
    method: Literal["", "LoRA", "QLoRA"] = ""
    workload: str = ""
    """In `harness.workloads.WORKLOADS`."""
    expected_seconds: float
    """With less time left it is not begun."""
    limit_seconds: float
    """After which its process is killed."""


class Figures(Message):
    """What a tool reached in a training."""

    num_tokens: int
    """Of all rows, without padding."""
    num_trained_tokens: int
    tokens_per_second: float
    """Without padding, after the first steps."""
    flops_per_second: float
    """Of what the rows need; see `measuring.needed_flops`."""
    peak_memory_mb: float
    """Of the GPU while it trained; without one, of the process."""
    losses: list[float]
    """Of each step, as the tool reports it, in nats per token."""
    seconds_training: float
    """From the call that trains to the end of the last step."""
    warnings: list[str]


class Card(Message):
    """The device."""

    gpu: str
    """Its name; empty without an Nvidia GPU."""
    flops_per_second: float
    """Of a large matrix product, in bfloat16 on a GPU."""
    checks: list[str]
    """The names of all checks, for the process that asks for them without loading torch."""


class Finding(Message):
    """What became of an item."""

    item: Item
    state: State
    reason: str = ""
    """Why it did not pass or was not measured, in one line."""
    trace: str = ""
    """Of the exception, or the end of the log of a process that died."""
    difference: float | None = None
    """Of a check's result from the reference, as a share of the reference."""
    tolerance: float | None = None
    card: Card | None = None
    figures: Figures | None = None
    seconds: float = 0.0
    """Of the item, the loading of libraries and base included."""


class Place(Message):
    """Where a worker works."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: Path
    folder: Path
    """For bases, rows and all that tools write."""


class Results(Message):
    """All findings so far, and what they were found on."""

    command: str
    machine: Machine
    findings: list[Finding]
