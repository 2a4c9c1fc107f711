"""After step 6: publish the report in Prefect, and the loss curve and the adapter in MLflow."""

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from tasks.durability.step import step
from tasks.engine.data.rendering import shown_text
from tasks.engine.data.rows import unread_text
from tasks.engine.data.splits import odd_text
from tasks.engine.data.tokens import changes
from tasks.engine.training import draw_loss_curve
from tasks.records import (
    DataRecord,
    LoadedRecord,
    ReportRecord,
    RunRecord,
    ShownRow,
    TrainedRecord,
)
from tasks.runtime.markdown import cell, embedded, fenced
from tasks.tracking import Tracker, run_url

_LONGEST_CELL = 200
_WAITS = "waits to be shipped: MLflow was unreachable"


@step
def publish_report(
    data: DataRecord, trained: TrainedRecord, loaded: LoadedRecord, run: RunRecord
) -> ReportRecord:
    """Publish the results as artifacts in Prefect and in the MLflow run."""
    picture = draw_loss_curve(trained.loss_curve, run.folder / "loss_curve.png")
    tracker = Tracker(run)
    tracker.log_file(picture)
    report = ReportRecord(
        run=run,
        data=data,
        trained=trained,
        saved=loaded.saved,
        loaded=loaded,
        model_uri=tracker.log_adapter(loaded.saved),
    )
    markdown = write_report(report)
    tracker.log_text(markdown, "report.md")
    link = run_url(run)
    if link:
        create_link_artifact(
            link=link,
            link_text=f"MLflow run {run.run_name}",
            key="mlflow-run",
            description="The run's curves, answers and files in MLflow",
        )
    create_markdown_artifact(
        markdown=f"{markdown}\n{embedded('loss curve', picture)}\n{_linked(link)}",
        key="adapter-report",
        description=f"LoRA adapter for {loaded.saved.base.reference}",
    )
    return report


def write_report(report: ReportRecord) -> str:
    """Return the report as Markdown, without the picture."""
    lines = [
        f"# LoRA adapter for {report.saved.base.reference}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _numbers(report).items()),
        "",
    ]
    rows = [*changes(report.data), *(odd_text(one) for one in report.data.odd)]
    if warnings := (*rows, *report.trained.injected.lora.warnings, *report.trained.warnings):
        lines += ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""]
    if report.data.train.parts:
        lines += ["## Sources", "", *_sources(report.data, report.trained), ""]
    for shown in report.data.shown:
        lines += [*_shown(shown), ""]
    if report.loaded.samples:
        lines += ["## Held-out answers", "", *_samples(report.loaded), ""]
    return "\n".join(lines)


def _sources(data: DataRecord, trained: TrainedRecord) -> list[str]:
    """Return a table of the sources: rows, tokens, and the held-out loss of each."""
    held_out = {part.name: part for part in (data.eval.parts if data.eval else ())}
    rows = []
    for part in data.train.parts:
        loss, apart = trained.eval_losses.get(part.name), held_out.get(part.name)
        numbers = [f"{part.num_rows:,}", f"{part.num_trained_tokens:,}"]
        numbers += [f"{apart.num_rows:,}" if apart else "-", f"{loss:.4f}" if loss else "-"]
        rows.append(f"| {part.name} | {part.row_format} | {' | '.join(numbers)} |")
    names = (
        "source",
        "format",
        "training rows",
        "trained tokens",
        "held-out rows",
        "held-out loss",
    )
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *rows]


def _shown(shown: ShownRow) -> list[str]:
    """Return a row as the model sees it, as a block of code."""
    heading = f"## Row {shown.place.row} of {shown.place.source}"
    about = f"{shown_text(shown)}, as the model sees it; what is between ⟦ and ⟧ is trained on."
    about = about[0].upper() + about[1:]
    return [heading, "", about, "", *fenced(shown.text)]


def _numbers(report: ReportRecord) -> dict[str, str]:
    trained, saved, loaded = report.trained, report.saved, report.loaded
    injected = trained.injected
    share = injected.num_trainable_parameters / injected.num_total_parameters
    numbers = {
        "base": f"`{saved.base.reference}`, {saved.base.dtype}",
        "base fingerprint": f"`{saved.base.fingerprint}`",
        "training rows": f"{report.data.train.num_rows:,}{report.data.train.made_of}, "
        f"sha256 `{report.data.train.sha256}`",
        "trainable parameters": f"{injected.num_trainable_parameters:,} ({share:.2%})",
        "steps": f"{trained.num_steps:,} in {trained.seconds_training:.0f} s",
        "training loss": f"{trained.train_loss:.4f}",
    }
    if report.data.unread:
        numbers["not read"] = cell(unread_text(report.data.unread), _LONGEST_CELL)
    if trained.eval_loss is not None:
        numbers["held-out loss"] = f"{trained.eval_loss:.4f}"
    if trained.eval_metrics:
        numbers["held-out rows"] = trained.eval_metrics_text
    if loaded.adapter_exact_match is not None:
        numbers[f"exact matches of {loaded.num_samples}"] = (
            f"base {loaded.base_exact_match:.0%}, adapter {loaded.adapter_exact_match:.0%}"
        )
    return numbers | {
        "adapter": f"`{saved.folder}`, {saved.weights.size_bytes / 1e6:.1f} MB",
        "round trip": f"logits differ by {saved.round_trip_logit_difference:g}",
        "MLflow model": f"`{report.model_uri}`" if report.model_uri else _WAITS,
        "pushed to": saved.hub_url or "-",
    }


def _samples(loaded: LoadedRecord, count: int = 5) -> list[str]:
    rows = [
        f"| {' | '.join(cell(text, _LONGEST_CELL) for text in texts)} |"
        for sample in loaded.samples[:count]
        for texts in [
            (sample.prompt, sample.expected, sample.base_answer, sample.adapter_answer),
        ]
    ]
    return ["| prompt | expected | base | adapter |", "|---|---|---|---|", *rows]


def _linked(link: str | None) -> str:
    return f"\n[The MLflow run]({link})\n" if link else ""
