"""Plot how adapterflow scales: `python -m benchmarks.harness.growth_picture GROWTH.json`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from benchmarks.harness.messages import Growth, Point

mpl.use("Agg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#2a6f97"
_PROPORTION = "#b0b7bd"
_WHOLE = 100


def draw(growth: Growth, file: Path) -> None:
    """Plot seconds above memory, one column per series, with proportional growth for comparison."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(point.series for point in growth.points))
    figure, grid = plt.subplots(2, len(names), figsize=(3.4 * len(names), 5.6), squeeze=False)
    for column, name in enumerate(names):
        points = [point for point in growth.points if point.series == name]
        _line(grid[0][column], points, lambda point: point.seconds)
        _line(grid[1][column], points, lambda point: point.peak_memory_mb)
        grid[1][column].set_xlabel(name)
    grid[0][0].set_ylabel("seconds")
    grid[1][0].set_ylabel("peak memory, MB")
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def _line(axes: "Axes", points: list[Point], of: Callable[[Point], float]) -> None:
    x = [point.x for point in points]
    y = [of(point) for point in points]
    axes.plot(x, [y[-1] * one / x[-1] for one in x], color=_PROPORTION, ls="--", lw=1)
    axes.plot(x, y, color=_OURS, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(min(y) / 2, max(y) * 2)
    axes.set_xticks(x, [f"{one:.0f}" for one in x])
    axes.minorticks_off()
    # Only the ends: labels in between may overlap.
    ends = sorted({y[0], y[-1]})
    axes.set_yticks(ends, [f"{one:,.1f}" if one < _WHOLE else f"{one:,.0f}" for one in ends])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(Growth.model_validate_json(source.read_text()), source.with_suffix(".png"))
