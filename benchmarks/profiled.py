"""`python -m benchmarks.profiled`: where a training run spends its time, by kind of operator.

torch's profiler slows small operators down, so the shares show where to look, not how fast a tool
is; `benchmarks.compare` measures that.
"""

import re
from collections import Counter, defaultdict

import click

from benchmarks.harness.messages import Run
from benchmarks.harness.processes import run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.tools import TOOLS

_FEW_STEPS = 4
_KINDS = {
    "matrix products": r"aten::(mm|addmm_?|bmm|baddbmm_?|mkldnn_linear)$|linear_pointwise",
    "attention": r"scaled_dot_product|flash_attention",
    "copies and casts": r"aten::(copy_|cat|clone|contiguous|index_select|gather|embedding|stack)",
    "loss": r"log_softmax|nll_loss|logsumexp|cross_entropy",
    "optimizer": r"Optimizer|adamw|_foreach|clip",
}
_OTHERS = "other operators"
_OUTSIDE = "outside operators (Python, waiting)"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", default="demo", type=click.Choice(list(WORKLOADS)))
@click.option("--tool", "tools", multiple=True, default=["ours"], type=click.Choice(list(TOOLS)))
@click.option(
    "--top", default=12, show_default=True, help="Number of operators to list for each tool."
)
@setting_options
def main(setting: Setting, workload: str, tools: tuple[str, ...], top: int) -> None:
    """Profile a few steps of each tool."""
    if why := setting.why_not(workload):
        raise click.UsageError(why)
    setting = setting.with_steps(_FEW_STEPS)
    _, job = setting.prepare(workload, 1)
    lines: list[str] = []
    for name in tools:
        tool = TOOLS[name]
        changes = {"folder": job.folder / name, "options": tool.options, "profiles": True}
        run = run_tool(name, tool, job.model_copy(update=changes), 1, setting.variables)
        lines += [f"## {tool.title}\n", *_kinds(run), *_largest(run, top)]
    setting.publish("profile", lines)


def kinds(run: Run) -> dict[str, float]:
    """Return the seconds of each kind of operator, which add up to those of the training."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, value in run.outcome.operators.items():
        found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, name))
        seconds[next(found, _OTHERS)] += value
    seconds[_OUTSIDE] = max(0.0, run.seconds_training - sum(seconds.values()))
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _kinds(run: Run) -> list[str]:
    whole = run.seconds_training
    rows = [(kind, f"{value:.1f}", f"{value / whole:.0%}") for kind, value in kinds(run).items()]
    return list(table(("kind", "s", "share"), rows))


def _largest(run: Run, top: int) -> list[str]:
    largest = Counter(run.outcome.operators).most_common(top)
    return list(table(("operator", "s"), [(name, f"{value:.2f}") for name, value in largest]))


if __name__ == "__main__":
    main()
