"""Messages between processes, as JSON.

This module imports nothing heavy, as the process that starts all others imports it too.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Message(BaseModel):
    """A JSON object; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid")


class Job(Message):
    """One training run, the same for every tool."""

    base: Path
    """Folder of the base model."""
    dtype: str
    """Of the base's weights: `bfloat16` (then with bf16 mixed precision) or `float32`."""
    train: Path
    """Training rows, one JSON object a line with `messages`, or with `prompt`, `chosen` and
    `rejected`."""
    held_out: Path
    """Held-out rows, in the same format."""
    num_steps: int
    """Optimizer steps; there are exactly `num_steps * batch_size` training rows."""
    batch_size: int
    max_length: int
    """Most tokens of a row."""
    learning_rate: float
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises; it falls as a cosine after that."""
    r: int = 16
    lora_alpha: int = 32
    seed: int = 0
    folder: Path
    """For everything that the tool writes; the adapter goes into a subfolder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of this tool only."""
    objective: str = "sft"
    """What is learned: `sft`, or `dpo` from pairs."""
    counts: bool = False
    """Whether to count the work; such a run is not timed."""
    profiles: bool = False
    """Whether to time each operator, which slows the run down."""

    @property
    def adapter(self) -> Path:
        """Return the folder for the finished adapter."""
        return self.folder / "adapter"

    @property
    def num_rows(self) -> int:
        """Return the number of training rows."""
        return self.num_steps * self.batch_size


class Work(Message):
    """The work of a training run, counted while it ran."""

    flops: int = 0
    """Of all matrix products and attentions, forward and backward, recomputed ones included."""
    num_forwards: int = 0
    num_tokens: int = 0
    """Positions that went through the layers, padding included."""


class Outcome(Message):
    """The outcome of a tool's run. Times are seconds since 1970."""

    started: float | None = None
    """When the tool's command began, if that is a process of its own."""
    ended: float | None = None
    """When that command ended."""
    training_began: float = 0.0
    """When training was called."""
    step_ends: list[float] = Field(default_factory=list)
    losses: list[float] = Field(default_factory=list)
    """As the tool itself reports them, step by step."""
    adapter: Path = Path()
    """Folder of the finished adapter, or of the full model."""
    adapter_done: float = 0.0
    seconds_training: float | None = None
    """As measured by the tool, if the beginning is not visible from outside."""
    work: Work | None = None
    operators: dict[str, float] = Field(default_factory=dict)
    """Seconds in each torch operator itself, if timed."""
    num_tokens: int | None = None
    """Of all training rows, if the tool reports it."""
    peak_memory_mb: float = 0.0
    """As measured by the tool, if not visible from outside."""
    peaks_mb: list[float] = Field(default_factory=list)
    """Of each process of a training in several."""
    peak_gpu_memory_mb: float = 0.0
    """While it trained, the base included; 0 without an Nvidia GPU."""
    warnings: list[str] = Field(default_factory=list)


class Usage(Message):
    """Resources that a process used, measured from outside."""

    began: float
    ended: float
    peak_memory_mb: float
    """Of the largest process among it and those that it waited for (ru_maxrss)."""
    cpu_seconds: float
    load_before: float
    """Load average over one minute before the process started."""
    load_after: float


class Run(Message):
    """One run of a tool on a workload."""

    tool: str
    repeat: int
    """0 for a run that is not timed: counting or warming up."""
    num_rows: int
    usage: Usage
    outcome: Outcome

    @property
    def peak_memory_mb(self) -> float:
        """Return the peak of the largest process."""
        return max(self.usage.peak_memory_mb, self.outcome.peak_memory_mb)

    @property
    def seconds_training(self) -> float:
        """Return the seconds from the call that trains to the end of the last step."""
        if self.outcome.seconds_training is not None:
            return self.outcome.seconds_training
        return self.outcome.step_ends[-1] - self.outcome.training_began

    @property
    def seconds_to_first_step(self) -> float:
        """Return the seconds from the command to the end of the first step."""
        return self.outcome.step_ends[0] - self._began

    @property
    def seconds_to_adapter(self) -> float:
        """Return the seconds from the command to the finished adapter."""
        return self.outcome.adapter_done - self._began

    @property
    def seconds_whole(self) -> float:
        """Return the seconds from the start of the command to its end."""
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
    """A request for a few steps, with all techniques or without one."""

    without: str | None
    first_batch: int
    num_steps: int


class Trialed(Message):
    """The measurement of a trial."""

    seconds: float
    num_rows: int
    peak_memory_mb: float
    """Peak resident memory since the steps began."""
    losses: list[float]
    """Mean token loss of each step."""

    @property
    def rows_per_second(self) -> float:
        """Return the rows per second."""
        return self.num_rows / self.seconds


class Pair(Message):
    """The same steps with a technique and without it."""

    on: Trialed
    off: Trialed


class Ablation(Message):
    """The measurements of one technique on one workload."""

    workload: str
    without: str
    pairs: list[Pair]
    """Empty if the engine does not use the technique on this workload."""


class RowsRequest(Message):
    """A workload, how many of its rows, and the base."""

    workload: str
    data: Path | None
    """The user's folder with the workload's data."""
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
    """Of each training row, as the chat template renders it up to the answer's end; of a pair, of
    the prompt with the chosen answer and of the prompt with the rejected one."""
    trained_tokens: list[int]


class ThroughputRequest(Message):
    """A base, and the numbers of positions to measure."""

    base: Path
    num_tokens: list[int]


class Throughput(Message):
    """FLOP/s of the base's linear layers at one number of positions."""

    num_tokens: int
    bfloat16: float
    float32: float


class Candidate(Message):
    """What to evaluate: the base, the base with an adapter, or a full model."""

    adapter: Path | None = None
    model: Path | None = None
    quantized: bool = False
    """Whether the base is quantized to 4 bits, as in training."""


class JudgingRequest(Message):
    """Candidates, and the rows to evaluate them on."""

    base: Path
    train: Path
    held_out: Path
    num_rows: int
    """Number of training rows, from the first; held-out rows are all used."""
    max_length: int
    candidates: list[Candidate]
    objective: str = "sft"
    """What is measured: the answers' loss, or that of `dpo` on pairs."""


class Verdict(Message):
    """Mean loss of the answers' tokens, in nats per token; or of pairs, by DPO with beta 0.1."""

    train_loss: float
    held_out_loss: float


class RunRequest(Message):
    """A flow run, and where it was tracked."""

    tracking_uri: str
    flow_run_id: str


class Peak(Message):
    """The peak memory of a flow run."""

    peak_memory_mb: float


class LoadingRequest(Message):
    """An adapter to load into one base under many names."""

    base: Path
    dtype: str
    adapter: Path
    num_adapters: int


class Loading(Message):
    """The time and memory of loading."""

    seconds: float
    """Without loading the base."""
    peak_memory_mb: float
    """Of the process, the base included."""


class Point(Message):
    """One measurement of scaling; `series` names the quantity `x`."""

    series: str
    x: float
    seconds: float
    peak_memory_mb: float


class Growth(Message):
    """All points of one measurement."""

    points: list[Point]
