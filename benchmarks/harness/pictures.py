"""Plot the comparison: `python -m benchmarks.harness.pictures RESULTS.json`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from benchmarks.harness.findings import Comparison, Figures, Spread, figures
from benchmarks.tools import TOOLS

mpl.use("Agg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#2a6f97"
_OTHERS = "#b0b7bd"


def draw(comparison: Comparison, file: Path) -> None:
    """Plot speed, memory and time to the adapter, one row of charts per workload."""
    from matplotlib import pyplot as plt

    rows = comparison.findings
    figure, grid = plt.subplots(len(rows), 3, figsize=(13, 0.6 + 2.6 * len(rows)), squeeze=False)
    for axes, findings in zip(grid, rows, strict=True):
        found = {tool: figures(findings, tool) for tool in TOOLS if tool in findings.tools()}
        _bars(axes[0], found, {t: f.rows_per_second for t, f in found.items()}, "rows/s", 1)
        memory = {t: f.peak_memory_mb for t, f in found.items()}
        _bars(axes[1], found, memory, "peak memory, MB", 0)
        seconds = {t: f.seconds_to_adapter for t, f in found.items()}
        _bars(axes[2], found, seconds, "seconds from command to adapter", 0)
        axes[0].set_title(findings.title, loc="left", fontsize=10, fontweight="bold")
        for right in axes[1:]:
            right.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def _bars(
    axes: "Axes", found: dict[str, Figures], values: dict[str, Spread], label: str, digits: int
) -> None:
    names = [TOOLS[tool].title for tool in found]
    middles = [value.median for value in values.values()]
    below = [value.median - value.least for value in values.values()]
    above = [value.most - value.median for value in values.values()]
    colors = [_OURS if TOOLS[tool].is_ours else _OTHERS for tool in found]
    axes.barh(names, middles, color=colors, xerr=[below, above], error_kw={"lw": 1})
    for at, value in enumerate(values.values()):
        axes.text(value.most, at, f"  {value.median:.{digits}f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    draw(Comparison.model_validate_json(results.read_text()), results.with_suffix(".png"))
