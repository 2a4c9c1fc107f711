"""Plot the loss curve."""

from collections.abc import Sequence
from pathlib import Path

from tasks.records import LossPoint


def draw_loss_curve(points: Sequence[LossPoint], file: Path) -> Path:
    """Plot training and held-out loss (nats per token) over the steps as a PNG, and return it.

    The losses are on a logarithmic scale if any of them is positive.
    """
    # Figure without pyplot: pyplot needs a backend and keeps every figure in a global list.
    from matplotlib.figure import Figure

    # Fixed margins: the layouts that fit them draw everything twice.
    figure = Figure(figsize=(7, 3.5))
    margins = {"left": 0.14, "right": 0.98, "bottom": 0.14, "top": 0.97}
    axes = figure.subplots(gridspec_kw=margins)
    for name, style, label in (
        ("train_loss", "-", "training"),
        ("eval_loss", "o--", "held-out"),
    ):
        drawn = [(p.step, getattr(p, name)) for p in points if getattr(p, name) is not None]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), style, label=label, markersize=5)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    if any((p.train_loss or 0) > 0 or (p.eval_loss or 0) > 0 for p in points):
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    if points:
        axes.legend()
    figure.savefig(file, dpi=110)
    return file
