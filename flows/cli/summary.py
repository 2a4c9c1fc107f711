"""The summary of a finished run: answers side by side, locations, and commands for both UIs."""

from rich.console import Console
from rich.table import Table

from flows.server.embedded import ui_command as prefect_ui_command
from flows.server.programs import near, runnable
from tasks.records import ReportRecord, RunRecord, SampleRecord
from tasks.tracking import Tracker, mlflow_run_id, ship_command
from tasks.tracking import ui_command as mlflow_ui_command

_SHOWN_SAMPLES = 4


def print_summary(report: ReportRecord) -> None:
    """Print the summary on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    if report.loaded.samples:
        Console(highlight=False).print(_answers(report.loaded.samples))
    for name, value in _lines(report):
        console.print(f"[bold]{name:<12}[/bold] ", end="")
        console.print(value, markup=False)


def _answers(samples: tuple[SampleRecord, ...]) -> Table:
    table = Table(title="Held-out rows, base beside adapter", show_lines=True)
    for column in ("prompt", "base", "adapter"):
        table.add_column(column, ratio=1, overflow="fold")
    for sample in samples[:_SHOWN_SAMPLES]:
        mark = "[green]✓[/green] " if sample.adapter_matches else "[red]✗[/red] "
        table.add_row(
            _escaped(sample.prompt),
            _escaped(sample.base_answer),
            mark + _escaped(sample.adapter_answer),
        )
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text.strip())


def _lines(report: ReportRecord) -> list[tuple[str, str]]:
    trained, saved, loaded = report.trained, report.saved, report.loaded
    lines = []
    if loaded.adapter_exact_match is not None:
        scores = (
            f"base {loaded.base_exact_match:.0%}, adapter {loaded.adapter_exact_match:.0%} "
            f"of {loaded.num_samples} held-out answers exactly right"
        )
        lines.append(("answers", scores))
    loss = f"{trained.train_loss:.4f}"
    if trained.eval_loss is not None:
        loss += f", held out {trained.eval_loss:.4f}"
    if trained.eval_losses:
        loss += f" ({', '.join(f'{name} {one:.4f}' for name, one in trained.eval_losses.items())})"
    if trained.eval_metrics:
        lines.append(("held out", trained.eval_metrics_text))
    return [
        *lines,
        ("loss", f"{loss} after {trained.num_steps} steps in {trained.seconds_training:.0f} s"),
        ("adapter", f"{near(saved.folder)} ({saved.weights.size_bytes / 1e6:.1f} MB)"),
        *([("on the Hub", saved.hub_url)] if saved.hub_url else []),
        ("MLflow run", mlflow_run(report.run)),
        *_waiting(report.run),
        ("MLflow UI", runnable(mlflow_ui_command(report.run))),
        ("Prefect UI", runnable(prefect_ui_command())),
    ]


def mlflow_run(run: RunRecord) -> str:
    """Describe where in MLflow a run is."""
    return f"{mlflow_run_id(run) or run.run_name} in experiment {run.experiment!r}"


def _waiting(run: RunRecord) -> list[tuple[str, str]]:
    waiting = Tracker(run).what_waits()
    return [("waiting", f"{waiting}; ship with: {ship_command(run)}")] if waiting else []
