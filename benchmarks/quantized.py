"""`python -m benchmarks.quantized`: memory and loss by the base's dtype and by what is trained.

An adapter on a base in float32, in half precision and quantized to 4 bits (QLoRA,
https://arxiv.org/abs/2305.14314), with and without gradient checkpointing, and full fine-tuning by
plain Trainer, on the same rows. Each is evaluated on the base that it was trained on.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import click

from benchmarks.harness.messages import Candidate, Job, Run, Verdict
from benchmarks.harness.processes import run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.tools import TOOLS

_JUDGED_ROWS = 64


@dataclass(frozen=True)
class _Way:
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    tool: str = "ours"
    whole_model: bool = False
    quantized: bool = False


_CHECKPOINTED = {"gradient_checkpointing": True}
_WAYS = (
    _Way("adapter, float32 base", {"base_model": {"dtype": "float32"}}),
    _Way("adapter"),
    _Way("adapter, checkpointing", {"base_model": _CHECKPOINTED}),
    _Way("adapter, 4-bit base", {"base_model": {"quantization": "4bit"}}, quantized=True),
    _Way(
        "adapter, 4-bit base, checkpointing",
        {"base_model": {"quantization": "4bit", **_CHECKPOINTED}},
        quantized=True,
    ),
    # A tenth of an adapter's learning rate, as usual for full fine-tuning.
    _Way("full fine-tuning (Trainer)", {"full": True}, tool="trainer", whole_model=True),
)
_FULL_LEARNING_RATE = 0.1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", default="demo", type=click.Choice(list(WORKLOADS)))
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, workload: str, repeats: int) -> None:
    """Measure memory and loss by how the base is held."""
    if why := setting.why_not(workload):
        raise click.UsageError(why)
    _, job = setting.prepare(workload, _JUDGED_ROWS)
    runs: dict[str, list[Run]] = {way.title: [] for way in _WAYS}
    for repeat in range(1, repeats + 1):
        for number, way in enumerate(_WAYS):
            click.echo(f"repeat {repeat}  {way.title}", err=True)
            this = _job(job, way, f"way-{number}-{repeat}")
            run = run_tool(way.title, TOOLS[way.tool], this, repeat, setting.variables)
            runs[way.title].append(run)
    candidates = [_candidate(way, runs[way.title][-1]) for way in _WAYS]
    base, *verdicts = setting.judge(job, _JUDGED_ROWS, candidates)
    header = ("", "peak MB", "rows/s", "training loss", "held-out loss")
    rows = [_row(way.title, runs[way.title], v) for way, v in zip(_WAYS, verdicts, strict=True)]
    lines = table(header, [*rows, _row(f"the base, untrained ({job.dtype})", [], base)])
    setting.publish("quantized", lines)


def _job(job: Job, way: _Way, folder: str) -> Job:
    rate = job.learning_rate * (_FULL_LEARNING_RATE if way.whole_model else 1)
    changes = {"folder": job.folder / folder, "options": way.options, "learning_rate": rate}
    return job.model_copy(update=changes)


def _candidate(way: _Way, run: Run) -> Candidate:
    adapter = run.outcome.adapter
    if way.whole_model:
        return Candidate(model=adapter)
    return Candidate(adapter=adapter, quantized=way.quantized)


def _row(title: str, runs: list[Run], verdict: Verdict) -> tuple[str, ...]:
    memory = [run.peak_memory_mb for run in runs]
    speed = [run.num_rows / run.seconds_training for run in runs]
    return (
        title,
        f"{median(memory):.0f}" if runs else "",
        f"{median(speed):.2f}" if runs else "",
        f"{verdict.train_loss:.4f}",
        f"{verdict.held_out_loss:.4f}",
    )


if __name__ == "__main__":
    main()
