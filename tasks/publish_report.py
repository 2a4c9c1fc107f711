"""After step 6: publish the report in Prefect, and the loss curve and the adapter in MLflow."""

from statistics import fmean

from prefect.artifacts import create_markdown_artifact

from tasks.durability.shown_run import publish_link
from tasks.durability.step import step
from tasks.engine.data.rendering import shown_text
from tasks.engine.data.rows import unread_text
from tasks.engine.data.splits import odd_text
from tasks.engine.data.tokens import changes
from tasks.engine.scoring import judge
from tasks.records import (
    DataRecord,
    LoadedRecord,
    ReportRecord,
    RunRecord,
    ShownRow,
    TrainedRecord,
)
from tasks.runtime.markdown import (
    PAGE_COLUMNS,
    blocks,
    breakable,
    cell,
    embedded,
    fenced,
    without_breaks,
)
from tasks.tracking import Tracker, run_url

_LONGEST_CELL = 200
_SHOWN_SAMPLES = 5
_WAITS = "waits to be shipped: MLflow was unreachable"


@step
def publish_report(
    data: DataRecord, trained: TrainedRecord, loaded: LoadedRecord, run: RunRecord
) -> ReportRecord:
    """Publish the results as artifacts in Prefect and in the MLflow run."""
    from tasks.engine.training import draw_loss_curve

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
    tracker.log_text(without_breaks(write_report(report)), "report.md")
    tracker.describe({"Result": result_of(report)})
    publish_link(run)  # where MLflow could not be reached at the beginning
    link = run_url(run)
    create_markdown_artifact(
        markdown=write_report(report, embedded("loss curve", picture), link),
        key="adapter-report",
        description=f"LoRA adapter for {loaded.saved.base.reference}",
    )
    return report


def write_report(report: ReportRecord, picture: str = "", link: str | None = None) -> str:
    """Return the report as Markdown: result, curve, answers, warnings, then everything else.

    Args:
        report: the result of the training.
        picture: Markdown of the loss curve.
        link: to the MLflow run.
    """
    lines = [
        f"# LoRA adapter for {report.saved.base.reference}",
        "",
        f"**{result_of(report)}**",
        "",
        *([f"[The MLflow run]({link})", ""] if link else []),
        *([picture, ""] if picture else []),
        *_samples(report.loaded),
        *_warnings(report),
        "## Numbers",
        "",
        *(f"- {name}: {value}" for name, value in _numbers(report).items()),
        "",
    ]
    if report.data.train.parts:
        lines += ["## Sources", "", *_sources(report.data, report.trained), ""]
    for shown in report.data.shown:
        lines += [*_shown(shown), ""]
    return "\n".join(lines)


def result_of(report: ReportRecord) -> str:
    """Return in one line what came of the training: the answers' score, or else the loss."""
    trained = report.trained
    judged = judge(report.loaded)
    loss = f"loss {trained.train_loss:.4f}"
    if trained.eval_loss is not None:
        loss += f", held out {trained.eval_loss:.4f}"
    scores = [judged.text] if judged else []
    if trained.eval_metrics:
        scores.append(f"held-out rows: {trained.eval_metrics_text}")
    return "; ".join([*scores, loss])


def _warnings(report: ReportRecord) -> list[str]:
    rows = [*changes(report.data), *(odd_text(one) for one in report.data.odd)]
    found = (*rows, *report.trained.injected.lora.warnings, *report.trained.warnings)
    return ["## Warnings", "", *(f"- {warning}" for warning in found), ""] if found else []


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
    heading = f"## Row {shown.place.row} of {breakable(shown.place.source)}"
    about = f"{shown_text(shown)}, as the model sees it; what is between ⟦ and ⟧ is trained on."
    about = about[0].upper() + about[1:]
    return [heading, "", about, "", *fenced(shown.text, PAGE_COLUMNS)]


def _numbers(report: ReportRecord) -> dict[str, str]:
    trained, saved, loaded = report.trained, report.saved, report.loaded
    injected = trained.injected
    share = injected.num_trainable_parameters / injected.num_total_parameters
    numbers = {
        "base": f"{breakable(saved.base.reference)}, {saved.base.dtype}",
        "base fingerprint": f"`{saved.base.fingerprint}`",
        "data": f"{breakable(report.data.train.source)}, {report.data.train.num_rows:,} rows"
        f"{report.data.train.made_of}",
        "sha256 of the training rows": f"`{report.data.train.sha256}`",
        "trainable parameters": f"{injected.num_trainable_parameters:,} ({share:.2%})",
        "steps": f"{trained.num_steps:,} in {trained.seconds_training:.0f} s",
        "training loss": f"{trained.train_loss:.4f}",
    }
    if source := trained.injected.lora.source:
        numbers["begins with"] = breakable(source.text)
    numbers |= _preferences(report)
    if report.data.unread:
        numbers["not read"] = cell(unread_text(report.data.unread), _LONGEST_CELL)
    if trained.eval_loss is not None:
        numbers["held-out loss"] = f"{trained.eval_loss:.4f}"
    if trained.eval_metrics:
        numbers["held-out rows"] = trained.eval_metrics_text
    if (judged := judge(loaded)) and loaded.adapter_exact_match is not None:
        numbers["answers"] = judged.text
        if judged.is_free_text:
            numbers["exactly right"] = (
                f"base {loaded.base_exact_match:.0%}, adapter {loaded.adapter_exact_match:.0%}"
            )
    return numbers | {
        "adapter": f"{breakable(saved.folder)}, {saved.weights.size_bytes / 1e6:.1f} MB",
        "round trip": f"logits differ by {saved.round_trip_logit_difference:g}",
        "MLflow model": f"`{report.model_uri}`" if report.model_uri else _WAITS,
        "pushed to": saved.hub_url or "-",
    }


def _preferences(report: ReportRecord) -> dict[str, str]:
    """Return how preferences were learned, if they were, and how long answers are.

    Training on preferences often makes answers longer, whether or not that was meant.
    """
    learned, lengths = report.trained.preferences, report.data.train.answer_lengths
    if learned is None or lengths is None:
        return {}
    are_pairs = learned.objective.learns_pairs
    numbers = {"learned from pairs" if are_pairs else "learned from judged answers": learned.text}
    if num_computed := learned.num_reference_pairs:
        numbers["reference"] = (
            f"the model before training, of {num_computed:,} {'pairs' if are_pairs else 'prompts'} "
            f"in {learned.seconds_reference:.0f} s"
        )
    numbers |= {
        "mean tokens of answers": f"chosen {lengths[0]:.0f}, rejected {lengths[1]:.0f}",
    }
    if samples := report.loaded.samples:
        texts = {
            "chosen": [one.expected for one in samples],
            "base": [one.base_answer for one in samples],
            "adapter": [one.adapter_answer for one in samples],
        }
        means = (f"{name} {fmean(map(len, given)):.0f}" for name, given in texts.items())
        numbers["mean characters of held-out answers"] = ", ".join(means)
    return numbers


def _samples(loaded: LoadedRecord) -> list[str]:
    """Return the first held-out answers, the texts of each one below the other."""
    judged = judge(loaded)
    if judged is None:
        return []
    lines = ["## Held-out answers", ""]
    for number, sample in enumerate(loaded.samples[:_SHOWN_SAMPLES], 1):
        base = judged.mark(sample.base_answer, sample.expected, is_exact=sample.base_matches)
        adapter = judged.mark(
            sample.adapter_answer, sample.expected, is_exact=sample.adapter_matches
        )
        texts = {
            "Prompt": sample.prompt,
            "Expected": sample.expected,
            f"Base ({base})": sample.base_answer,
            f"Adapter ({adapter})": sample.adapter_answer,
        }
        lines += [f"### Answer {number}", "", *blocks(texts)]
    return lines
