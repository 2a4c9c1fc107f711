"""`python -m benchmarks.compare`: every workload, every tool, a table and a picture."""

import os
import sys
from pathlib import Path

import click

from benchmarks.harness import machine
from benchmarks.harness.findings import Comparison
from benchmarks.harness.processes import run_fresh
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.side_by_side import Plan, able, compare_on
from benchmarks.harness.tables import as_markdown
from benchmarks.harness.workloads import COMPARED as WORKLOADS
from benchmarks.harness.workloads import GROUPS, expanded
from benchmarks.tools import COMPARED, TOOLS

_JUDGED_ROWS = 64
_QUICK_STEPS = 3
_QUICK_JUDGED_ROWS = 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", "workloads", multiple=True, type=click.Choice([*WORKLOADS, *GROUPS]))
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="A few steps of the demo, once, as a smoke test.")
@setting_options
def main(
    setting: Setting,
    workloads: tuple[str, ...],
    tools: tuple[str, ...],
    repeats: int,
    quick: bool,  # noqa: FBT001
) -> None:
    """Compare adapterflow with other tools on the same work."""
    missing = {name: why for name in tools or COMPARED if (why := TOOLS[name].why_not())}
    plan = Plan(
        repeats=1 if quick else repeats,
        judged_rows=_QUICK_JUDGED_ROWS if quick else _JUDGED_ROWS,
        tools=tuple(name for name in tools or COMPARED if name not in missing),
        adds_tools=not tools and not quick,
    )
    if quick:
        setting = setting.with_steps(_QUICK_STEPS)
    comparison = Comparison(
        command=setting.command,
        machine=machine.describe(),
        threads=setting.threads,
        repeats=plan.repeats,
        findings=[],
        skipped=missing,
    )
    for name in expanded(workloads) or (["demo"] if quick else WORKLOADS):
        if why := setting.why_not(name):
            comparison.skipped[name] = why
            continue
        if not able(plan.tools, name):
            comparison.skipped[name] = "no tool that is compared learns from its rows"
            continue
        comparison.findings.append(compare_on(name, setting, plan))
        _write(comparison, setting.folder)
    _write(comparison, setting.folder)
    for name, why in comparison.skipped.items():
        click.echo(f"skipped {name}: {why}", err=True)
    click.echo((setting.folder / "results.md").read_text())
    click.echo(f"all files: {setting.folder}", err=True)


def _write(comparison: Comparison, folder: Path) -> None:
    """Write the results so far, so that an interrupted comparison keeps them."""
    results = folder / "results.json"
    results.write_text(comparison.model_dump_json(indent=2))
    (folder / "results.md").write_text(as_markdown(comparison))
    if comparison.findings:
        command = [sys.executable, "-m", "benchmarks.harness.pictures", str(results)]
        run_fresh(command, folder / "pictures.log", os.environ)


if __name__ == "__main__":
    main()
