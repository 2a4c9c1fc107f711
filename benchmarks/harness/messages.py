"""What goes from one process to another, as JSON.

This module imports nothing heavy: the process that starts all others reads it, too.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Message(BaseModel):
    """JSON with known keys."""

    model_config = ConfigDict(extra="forbid")


class Job(Message):
    """One training, the same for every tool."""

    base: Path
    """Folder of the base model."""
    dtype: str
    """Of the base's weights: `bfloat16` (then with bf16 mixed precision) or `float32`."""
    train: Path
    """Training rows, one JSON object a line with `messages`."""
    held_out: Path
    """Rows that nobody trains on, in the same form."""
    num_steps: int
    """Optimiser steps; there are exactly `num_steps * batch_size` training rows."""
    batch_size: int
    max_length: int
    """Longest row in tokens."""
    learning_rate: float
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises; it falls as a cosine after that."""
    r: int = 16
    lora_alpha: int = 32
    seed: int = 0
    folder: Path
    """For all that the tool writes; the adapter goes below it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What only this tool understands."""
    counts: bool = False
    """Whether to count the work instead of being timed."""
    profiles: bool = False
    """Whether to time each operator, which takes time itself."""

    @property
    def adapter(self) -> Path:
        """Give the folder that the finished adapter goes to."""
        return self.folder / "adapter"

    @property
    def num_rows(self) -> int:
        """Give the number of training rows."""
        return self.num_steps * self.batch_size


class Work(Message):
    """What a training computed, counted while it ran."""

    flops: int = 0
    """Of all matrix products and attentions, forward and backward, recomputed ones included."""
    num_forwards: int = 0
    num_tokens: int = 0
    """Positions that went through the layers, padding included."""


class Outcome(Message):
    """What a tool did. Times are seconds since 1970."""

    started: float | None = None
    """When the tool's own command began, where that is another process than the tool's."""
    ended: float | None = None
    """When that command ended."""
    training_began: float = 0.0
    """When the tool was told to train."""
    step_ends: list[float] = Field(default_factory=list)
    losses: list[float] = Field(default_factory=list)
    """As the tool itself reports them, step by step."""
    adapter: Path = Path()
    """The finished adapter's folder, or a whole model's."""
    adapter_done: float = 0.0
    seconds_training: float | None = None
    """As the tool measured it, where its begin cannot be seen from outside."""
    work: Work | None = None
    operators: dict[str, float] = Field(default_factory=dict)
    """Seconds in each of torch's operators themselves, where they were timed."""
    num_tokens: int | None = None
    """Of all training rows, where the tool says it."""
    peak_memory_mb: float = 0.0
    """As the tool measured it, where that cannot be seen from outside."""
    remarks: list[str] = Field(default_factory=list)


class Usage(Message):
    """What a process took, seen from outside."""

    began: float
    ended: float
    peak_memory_mb: float
    """Of the largest process among it and those that it waited for (ru_maxrss)."""
    cpu_seconds: float
    load_before: float
    """Processes that ran or wanted to, averaged over a minute, before this one began."""
    load_after: float


class Run(Message):
    """One tool's one try at a workload."""

    tool: str
    repeat: int
    """0: counted, or to warm up, and not timed."""
    num_rows: int
    usage: Usage
    outcome: Outcome

    @property
    def peak_memory_mb(self) -> float:
        """Give the peak of the largest process."""
        return max(self.usage.peak_memory_mb, self.outcome.peak_memory_mb)

    @property
    def seconds_training(self) -> float:
        """Give the seconds from the call that trains to the end of the last step."""
        if self.outcome.seconds_training is not None:
            return self.outcome.seconds_training
        return self.outcome.step_ends[-1] - self.outcome.training_began

    @property
    def seconds_to_first_step(self) -> float:
        """Give the seconds from the command to the end of the first step."""
        return self.outcome.step_ends[0] - self._began

    @property
    def seconds_to_adapter(self) -> float:
        """Give the seconds from the command to the finished adapter."""
        return self.outcome.adapter_done - self._began

    @property
    def seconds_whole(self) -> float:
        """Give the seconds from the command's begin to its end."""
        return (self.outcome.ended or self.usage.ended) - self._began

    @property
    def _began(self) -> float:
        return self.outcome.started or self.usage.began


class Ready(Message):
    """How the engine trains on a job's rows."""

    in_use: list[str]
    """Names of the techniques that it uses."""
    batching: str
    batch_tokens: int


class Trial(Message):
    """A few steps, with all techniques or without one."""

    without: str | None
    first_batch: int
    num_steps: int


class Trialed(Message):
    """What the steps took."""

    seconds: float
    num_rows: int
    peak_memory_mb: float
    """Resident, at its highest since the steps began."""
    losses: list[float]
    """Mean token loss of each step."""

    @property
    def rows_per_second(self) -> float:
        """Return the rate."""
        return self.num_rows / self.seconds


class Pair(Message):
    """The same steps with a technique and without it."""

    on: Trialed
    off: Trialed


class Ablation(Message):
    """A technique on a workload."""

    workload: str
    without: str
    pairs: list[Pair]
    """None where the engine does not use the technique on this workload."""


class RowsRequest(Message):
    """Which workload, how much of it, on which base."""

    workload: str
    data: Path | None
    """The folder that was given for the workload."""
    base: str
    dtype: str
    num_rows: int
    num_held_out: int
    folder: Path
    """For the rows."""


class Prepared(Message):
    """A workload's files, ready for every tool."""

    base: Path
    dtype: str
    train: Path
    held_out: Path
    tokens: list[int]
    """Of each training row, as the chat template renders it up to the answer's end."""
    trained_tokens: list[int]


class ThroughputRequest(Message):
    """Which base, and how many positions at once."""

    base: Path
    num_tokens: list[int]


class Throughput(Message):
    """FLOP/s of the base's linear layers at one number of positions."""

    num_tokens: int
    bfloat16: float
    float32: float


class Candidate(Message):
    """What is judged: the base alone, or with an adapter, or a whole model instead of it."""

    adapter: Path | None = None
    model: Path | None = None
    quantized: bool = False
    """Whether on a base packed to 4 bits, as it was trained."""


class JudgingRequest(Message):
    """Candidates and the rows that they are judged on."""

    base: Path
    train: Path
    held_out: Path
    num_rows: int
    """Of the training rows, from the first; all of the others."""
    max_length: int
    candidates: list[Candidate]


class Verdict(Message):
    """Mean loss in nats a token of the answers."""

    train_loss: float
    held_out_loss: float


class RunRequest(Message):
    """Which flow run, recorded where."""

    tracking_uri: str
    flow_run_id: str


class Peak(Message):
    """The memory that a flow run needed at its peak."""

    peak_memory_mb: float


class LoadingRequest(Message):
    """An adapter to load under so many names into one base."""

    base: Path
    dtype: str
    adapter: Path
    num_adapters: int


class Loading(Message):
    """What that took."""

    seconds: float
    """The base's own loading excluded."""
    peak_memory_mb: float
    """Of the whole process."""


class Point(Message):
    """One measurement of growth: `series` says of what `x` is the number."""

    series: str
    x: float
    seconds: float
    peak_memory_mb: float


class Growth(Message):
    """All points of one go."""

    points: list[Point]
