"""Variants side by side: each one's numbers, and which of them is the best."""

from collections.abc import Sequence
from pathlib import Path

from tasks.config import Score
from tasks.records import ReportRecord, VariantRecord, VariantResult
from tasks.tracking import mlflow_run_id

COLUMNS = ("variant", "score", "held-out loss", "loss", "rows", "tokens", "seconds", "MB")
_MOST_BARS = 60


def trained(
    variant: VariantRecord, report: ReportRecord, metric: Score, set_folder: Path
) -> VariantResult:
    """Return what a variant's run reported."""
    training, saved = report.trained, report.saved
    return VariantResult(
        name=variant.name,
        settings=variant.settings,
        value=variant.value,
        flow_run_id=report.run.flow_run_id,
        mlflow_run_id=mlflow_run_id(report.run),
        adapter=str(saved.folder.relative_to(set_folder)),
        weights=saved.weights,
        model_uri=report.model_uri,
        score=score_of(report, metric),
        train_loss=training.train_loss,
        eval_loss=training.eval_loss,
        num_rows=report.data.train.num_rows,
        num_tokens=training.num_tokens,
        seconds_training=training.seconds_training,
    )


def failed(variant: VariantRecord, flow_run_id: str, error: str) -> VariantResult:
    """Return the result of a variant that has no adapter."""
    return VariantResult(
        name=variant.name,
        settings=variant.settings,
        value=variant.value,
        flow_run_id=flow_run_id,
        error=error,
    )


def score_of(report: ReportRecord, metric: Score) -> float | None:
    """Return a run's score; None where it was not measured."""
    match metric:
        case Score.EVAL_LOSS:
            return report.trained.eval_loss
        case Score.TRAIN_LOSS:
            return report.trained.train_loss
        case Score.EXACT_MATCH:
            return report.loaded.adapter_exact_match
    return report.trained.eval_metrics.get(metric.value)


def best_of(results: Sequence[VariantResult], metric: Score) -> str | None:
    """Return the name of the variant with the best score, the first of equals; None without any."""
    scored = [one for one in results if one.score is not None]
    if not scored:
        return None
    choose = min if metric.is_loss else max
    return choose(scored, key=lambda one: one.score or 0.0).name


def cells(result: VariantResult) -> tuple[str, ...]:
    """Return a result as the cells of a table with `COLUMNS`."""
    if result.error is not None:
        return (result.name, *["-"] * (len(COLUMNS) - 1))
    return (
        result.name,
        *(_number(one) for one in (result.score, result.eval_loss, result.train_loss)),
        f"{result.num_rows:,}",
        f"{result.num_tokens:,}",
        f"{result.seconds_training:.1f}",
        f"{result.megabytes:.2f}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def draw_scores(
    results: Sequence[VariantResult], metric: Score, best: str | None, file: Path
) -> Path:
    """Plot the variants' scores as a PNG, the best first, and return it; of many, the first."""
    # Figure without pyplot: pyplot needs a backend and keeps every figure in a global list.
    from matplotlib.figure import Figure

    scored = [one for one in results if one.score is not None]
    scored.sort(key=lambda one: one.score or 0.0, reverse=not metric.is_loss)
    shown = scored[:_MOST_BARS]
    figure = Figure(figsize=(8, 1.2 + 0.22 * max(len(shown), 4)), layout="constrained")
    axes = figure.subplots()
    colors = ["#ee7733" if one.name == best else "#4477aa" for one in shown]
    axes.barh(range(len(shown)), [one.score or 0.0 for one in shown], color=colors)
    axes.set_yticks(range(len(shown)), [one.name for one in shown], fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.set_xlabel(metric.value)
    more = f", the first {len(shown)}" if len(shown) < len(scored) else ""
    axes.set_title(f"{len(scored):,} of {len(results):,} variants{more}", fontsize=9)
    figure.savefig(file, dpi=110)
    return file
