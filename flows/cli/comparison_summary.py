"""The summary of a finished retraining, and the history of a registered model."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flows.cli.next_steps import places, use_version
from tasks.records import HarnessRecord, RetrainedRecord, VersionRecord
from tasks.tracking import OUTCOME_TAG, REASON_TAG, ROLLED_BACK_TAG


def print_comparison(record: RetrainedRecord) -> None:
    """Print the models' scores side by side and the decision on stdout."""
    console = Console(highlight=False)
    if record.evaluated:
        models = record.evaluated.models
        table = Table(title=f"{record.evaluated.num_rows} held-out rows")
        for column in ("metric", *(model.name for model in models)):
            table.add_column(column)
        for metric in models[0].scores:
            table.add_row(metric, *(f"{model.scores[metric]:.4g}" for model in models))
        table.add_row("rows/s", *(f"{model.rows_per_second:.1f}" for model in models))
        console.print(table)
        if record.evaluated.harness:
            console.print(_harness_table(record.evaluated.harness))
    if record.version:
        console.print(f"version      {record.version.uri}", markup=False, soft_wrap=True)
    console.print(f"decision     {record.decision.reason}", markup=False, soft_wrap=True)
    if record.published:
        said = f"{record.published.outcome}: {record.published.reason}"
        console.print(f"serving      {said}", markup=False, soft_wrap=True)
    for name, value in (*(places(record.run) if record.run else []), *use_version(record)):
        console.print(f"{name:<12} {value}", markup=False, soft_wrap=True)


def _harness_table(harness: HarnessRecord) -> Table:
    table = Table(title=f"lm-evaluation-harness {harness.lm_eval_version}")
    names = [model.name for model in harness.models]
    for column in ("task/metric", *names):
        table.add_column(column)
    scores = [harness.shown_scores(name) for name in names]
    for name in scores[0]:
        table.add_row(name, *(f"{one[name]:.4g}" if name in one else "-" for one in scores))
    return table


def print_history(versions: Sequence[VersionRecord]) -> None:
    """Print a model's versions with their scores and decisions, the newest first."""
    table = Table("version", "created", "score", "decision", show_lines=True)
    for one in reversed(versions):
        created = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.created_ms / 1000))
        title = "\n".join([str(one.version), *one.aliases])
        table.add_row(title, f"{created} UTC", _score(one), _decision(one))
    Console(highlight=False).print(table)


def _score(one: VersionRecord) -> str:
    metric = one.tags.get("decision.metric")
    if metric is None:
        return "-"
    scores = (
        f"{name} {one.tags[key]}"
        for name in ("base", "champion", "challenger")
        if (key := f"score.{name}.{metric}") in one.tags
    )
    return "\n".join([metric, *scores])


def _decision(one: VersionRecord) -> str:
    decision = one.tags.get(REASON_TAG) or one.tags.get(OUTCOME_TAG) or "not decided"
    rolled_back = one.tags.get(ROLLED_BACK_TAG)
    return decision + (f"\nrolled back {rolled_back}" if rolled_back else "")
