"""After the variants: publish their comparison, in Prefect, in MLflow and as the set's manifest."""

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from tasks.config import Score
from tasks.durability.step import step
from tasks.records import VARIANTS_FILE, RunRecord, VariantResult, VariantsRecord
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.markdown import cell, embedded
from tasks.tracking import Tracker, run_url
from tasks.variants.comparison import COLUMNS, best_of, cells, draw_scores

_LONGEST_CELL = 200


@step
def publish_variants(  # noqa: PLR0913 - what a set is
    results: tuple[VariantResult, ...],
    base: str,
    column: str | None,
    metric: Score,
    registered: dict[str, int],
    run: RunRecord,
) -> VariantsRecord:
    """Publish the comparison, and write the manifest, by which `predict` finds the adapters.

    Args:
        results: what became of the variants.
        base: that they were trained on.
        column: that the set is split by; then no variant is the best, as they are scored on
            different rows.
        metric: that they are compared by.
        registered: versions in MLflow's registry, by the registered model's name.
        run: the set's.
    """
    record = VariantsRecord(
        run=run,
        base=base,
        column=column,
        metric=metric,
        best=None if column else best_of(results, metric),
        registered=registered,
        variants=results,
    )
    tracker = Tracker(run)
    picture = draw_scores(results, metric, record.best, run.folder / "variants.png")
    tracker.log_file(picture)
    tracker.log_table(_rows(record), "variants.json")
    tracker.log_metrics(_metrics(record))
    markdown = write_comparison(record)
    tracker.log_text(markdown, "report.md")
    link = run_url(run)
    if link:
        create_link_artifact(
            link=link, link_text=f"MLflow run {run.run_name}", key="mlflow-run", description=""
        )
    create_markdown_artifact(
        markdown=f"{markdown}\n\n{embedded('scores', picture)}\n",
        key="variants-report",
        description=f"{len(results)} variants on {base}",
    )
    write_atomically(run.folder / VARIANTS_FILE, record.model_dump_json(indent=2) + "\n")
    return record


def write_comparison(record: VariantsRecord) -> str:
    """Return the comparison as Markdown, without the picture."""
    lines = [
        f"# {len(record.variants):,} variants on {record.base}",
        "",
        f"The score is `{record.metric.value}`"
        + (f"; the best is **{record.best}**." if record.best else "."),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for one in record.variants:
        name, *rest = cells(one)
        shown = cell(name, _LONGEST_CELL)
        lines.append(
            f"| {f'**{shown}** (best)' if name == record.best else shown} | {' | '.join(rest)} |"
        )
    if record.failed:
        lines += ["", f"## {len(record.failed):,} failed", ""]
        lines += [
            f"- {cell(one.name, _LONGEST_CELL)}: {cell(one.error or '', _LONGEST_CELL)}"
            for one in record.failed
        ]
    if record.registered:
        lines += ["", "## Registered", ""]
        lines += [f"- `models:/{name}/{number}`" for name, number in record.registered.items()]
    return "\n".join(lines)


def _rows(record: VariantsRecord) -> list[dict[str, object]]:
    return [
        {
            "variant": one.name,
            "best": one.name == record.best,
            "score": one.score,
            "eval_loss": one.eval_loss,
            "train_loss": one.train_loss,
            "rows": one.num_rows,
            "tokens": one.num_tokens,
            "seconds": one.seconds_training,
            "megabytes": one.megabytes,
            "error": one.error,
            "flow_run_id": one.flow_run_id,
            "settings": str(one.settings),
        }
        for one in record.variants
    ]


def _metrics(record: VariantsRecord) -> dict[str, float]:
    scores = [one.score for one in record.variants if one.score is not None]
    numbers = {
        "variants/num_trained": float(len(record.variants) - len(record.failed)),
        "variants/num_failed": float(len(record.failed)),
    }
    if scores:
        best = min(scores) if record.metric.is_loss else max(scores)
        numbers |= {
            f"variants/best_{record.metric.value}": best,
            f"variants/mean_{record.metric.value}": sum(scores) / len(scores),
        }
    return numbers
