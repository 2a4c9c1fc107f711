"""Plot the comparison of models."""

from collections.abc import Mapping
from pathlib import Path

from tasks.engine.scoring.metric_names import metric_title
from tasks.records import BASE, CHAMPION, DecisionRecord, EvaluatedRecord

_COLORS = {BASE: "#b0b0b0", CHAMPION: "#4477aa", "challenger": "#ee7733"}


def draw_comparison(evaluated: EvaluatedRecord, decision: DecisionRecord, file: Path) -> Path:
    """Plot the models' metrics between 0 and 1, and their losses, as a PNG, and return it."""
    # Figure without pyplot: pyplot needs a backend and keeps every figure in a global list.
    from matplotlib.figure import Figure

    first = evaluated.models[0].scores
    shares = [n for n in first if all(0 <= m.scores[n] <= 1 for m in evaluated.models)]
    shares = [name for name in shares if name not in {"loss", "perplexity"}]
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[max(len(shares), 1), 1])
    for axes, names in ((left, shares), (right, ["loss"])):
        for place, model in enumerate(evaluated.models):
            width = 0.8 / len(evaluated.models)
            at = [index - 0.4 + (place + 0.5) * width for index in range(len(names))]
            heights = _heights(model.scores, names)
            axes.bar(at, heights, width, label=model.name, color=_COLORS[model.name])
        axes.set_xticks(
            range(len(names)), [metric_title(n) for n in names], rotation=20, ha="right"
        )
        axes.grid(alpha=0.3, axis="y")
    left.set_ylim(0, 1)
    right.set_ylabel("nats per token")
    left.legend()
    figure.suptitle(f"{metric_title(decision.metric)} decides, on {evaluated.num_rows} rows")
    figure.savefig(file, dpi=110)
    return file


def _heights(scores: Mapping[str, float], names: list[str]) -> list[float]:
    return [scores[name] for name in names]
