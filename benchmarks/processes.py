"""`python -m benchmarks.processes`: one training in one process and in several, on the demo's rows.

On a CPU they share its cores: one process computes with as many threads as several do together.
The losses of each step and the trained weights are compared, too. In float32 they have to be equal
but for rounding; `--dtype float32` shows it.
"""

from collections.abc import Iterator, Sequence
from statistics import median

import click
from safetensors.numpy import load_file

from benchmarks.harness.messages import Job, Run
from benchmarks.harness.processes import run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.tools import Tool

_HEADER = (
    "processes",
    "threads each",
    "rows/s",
    "rows/s after the first step",
    "first step s",
    "MB each",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--processes", default=2, show_default=True, type=click.IntRange(2))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, processes: int, repeats: int) -> None:
    """Measure a training in one process and in several."""
    setting = setting.with_steps(20)
    _, job = setting.prepare("demo", 1)
    sizes = (1, processes)
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    for repeat in range(1, repeats + 1):
        for size in sizes if repeat % 2 else sizes[::-1]:
            click.echo(f"repeat {repeat}  {size} processes", err=True)
            runs[size].append(_run(setting, job, size, repeat))
    threads = {size: max(1, setting.threads // size) for size in sizes}
    rows = [(str(size), str(threads[size]), *_figures(runs[size])) for size in sizes]
    setting.publish("processes", [*table(_HEADER, rows), *_differences(*runs.values())])


def _run(setting: Setting, job: Job, size: int, repeat: int) -> Run:
    launch = {"num_processes": size}
    tool = Tool("group", f"{size} processes", {"launch": launch, "training": {"logging_steps": 1}})
    changes = {"folder": job.folder / f"{size}-{repeat}", "options": tool.options}
    return run_tool(str(size), tool, job.model_copy(update=changes), repeat, setting.variables)


def _figures(runs: Sequence[Run]) -> Iterator[str]:
    yield f"{median(run.num_rows / run.seconds_training for run in runs):.2f}"
    yield f"{median(_rate_after_first_step(run) for run in runs):.2f}"
    ends = [(run.outcome.training_began, run.outcome.step_ends[0]) for run in runs]
    yield f"{median(first - began for began, first in ends):.1f}"
    peaks = [run.outcome.peaks_mb or [run.peak_memory_mb] for run in runs]
    yield ", ".join(f"{median(column):.0f}" for column in zip(*peaks, strict=True))


def _rate_after_first_step(run: Run) -> float:
    """Return rows a second; what a group's start takes is in its first step."""
    ends = run.outcome.step_ends
    return run.num_rows / len(ends) * (len(ends) - 1) / (ends[-1] - ends[0])


def _differences(alone: Sequence[Run], together: Sequence[Run]) -> Iterator[str]:
    """Say how far losses and weights are apart, as all runs of a size have the same."""
    one, several = alone[0].outcome, together[0].outcome
    losses = zip(one.losses, several.losses, strict=True)
    of_losses = max(abs(mine - other) / abs(mine) for mine, other in losses)
    first, second = load_file(one.adapter), load_file(several.adapter)
    of_weights = max(float(abs(first[name] - second[name]).max()) for name in first)
    largest = max(float(abs(tensor).max()) for tensor in first.values())
    yield (
        f"\nLosses of the {len(one.losses)} steps differ by at most {of_losses:.1e} of the loss, "
        f"weights by {of_weights:.1e}; the largest weight is {largest:.2f}."
    )


if __name__ == "__main__":
    main()
