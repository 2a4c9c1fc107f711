"""What a comparison measured, and the figures derived from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.harness.machine import Machine
from benchmarks.harness.messages import Job, Message, Run, Throughput, Verdict, Work

BASE = "base"
"""The verdict's key for the base without an adapter."""


class Findings(Message):
    """All measurements on one workload."""

    workload: str
    title: str
    job: Job
    """The job of every tool, apart from its folder and options."""
    tokens: list[int]
    """Tokens of each training row, without padding."""
    num_trained_tokens: int
    runs: list[Run]
    throughputs: list[Throughput]
    """One per number of positions and repeat."""
    verdicts: dict[str, Verdict]
    """By the adapter's path; `base` without an adapter."""
    failed: dict[str, str]
    """Tools that failed, and why."""

    def timed(self, tool: str) -> list[Run]:
        """Return the repeats of a tool."""
        return [run for run in self.runs if run.tool == tool and run.repeat]

    def tools(self) -> list[str]:
        """Return the tools that have repeats."""
        return list(dict.fromkeys(run.tool for run in self.runs if run.repeat))


class Comparison(Message):
    """All workloads of one comparison."""

    command: str
    machine: Machine
    threads: int
    repeats: int
    findings: list[Findings]
    skipped: dict[str, str]
    """Workloads and tools that could not run, and why."""


@dataclass(frozen=True)
class Spread:
    """Median, least and most of the repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarize a value of each repeat."""
        kept = list(values)
        return cls(median(kept), min(kept), max(kept))


@dataclass(frozen=True)
class Figures:
    """One tool's figures on one workload."""

    rows_per_second: Spread
    tokens_per_second: Spread
    peak_memory_mb: Spread
    cpu_seconds: Spread
    seconds_to_first_step: Spread
    """From the command to the end of the first step."""
    seconds_to_adapter: Spread
    train_loss: Spread
    held_out_loss: Spread
    computed: "Computed | None"


@dataclass(frozen=True)
class Computed:
    """How much a tool computes for its rows, and how fast."""

    flops_per_row: float
    positions_per_token: float
    """Computed positions per real token: above 1 with padding, below 1 with a shared prefix."""
    flops_per_second: Spread
    bfloat16_throughput: float
    """FLOP/s of the layers' products alone, at the tool's number of positions per forward pass."""
    float32_throughput: float

    @property
    def share(self) -> float:
        """Return the share of the machine's throughput that the tool reaches."""
        return self.flops_per_second.median / self.throughput

    @property
    def throughput(self) -> float:
        """Return the throughput in the faster of the two types, which `dtype: auto` chooses.

        Without hardware for bfloat16, its products are slower than those in float32.
        """
        return max(self.bfloat16_throughput, self.float32_throughput)


def figures(findings: Findings, tool: str) -> Figures:
    """Summarize a tool's repeats."""
    runs = findings.timed(tool)
    tokens = sum(findings.tokens)
    verdicts = [findings.verdicts[str(run.outcome.adapter)] for run in runs]
    return Figures(
        rows_per_second=Spread.of(run.num_rows / run.seconds_training for run in runs),
        tokens_per_second=Spread.of(tokens / run.seconds_training for run in runs),
        peak_memory_mb=Spread.of(run.peak_memory_mb for run in runs),
        cpu_seconds=Spread.of(run.usage.cpu_seconds for run in runs),
        seconds_to_first_step=Spread.of(run.seconds_to_first_step for run in runs),
        seconds_to_adapter=Spread.of(run.seconds_to_adapter for run in runs),
        train_loss=Spread.of(verdict.train_loss for verdict in verdicts),
        held_out_loss=Spread.of(verdict.held_out_loss for verdict in verdicts),
        computed=_computed(findings, tool, runs),
    )


def positions_a_forward(work: Work) -> int:
    """Return the mean number of positions per forward pass."""
    return round(work.num_tokens / work.num_forwards)


def _computed(findings: Findings, tool: str, runs: list[Run]) -> Computed | None:
    counted = [run for run in findings.runs if run.tool == tool and run.outcome.work]
    if not counted:
        return None
    run = counted[0]
    work = run.outcome.work
    assert work is not None  # noqa: S101 - the caller filters by it
    at = positions_a_forward(work)
    measured = [one for one in findings.throughputs if one.num_tokens == at]
    flops = work.flops / run.num_rows
    return Computed(
        flops_per_row=flops,
        positions_per_token=work.num_tokens / sum(findings.tokens[: run.num_rows]),
        flops_per_second=Spread.of(flops * one.num_rows / one.seconds_training for one in runs),
        bfloat16_throughput=median(one.bfloat16 for one in measured),
        float32_throughput=median(one.float32 for one in measured),
    )
