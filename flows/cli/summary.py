"""The summary of a finished run: answers side by side, loss, locations, and what to do next."""

from rich.console import Console
from rich.table import Table

from flows.cli.next_steps import places, use
from flows.server.programs import near
from tasks.engine.scoring import Judged, judge
from tasks.records import ReportRecord, SampleRecord

_SHOWN_SAMPLES = 4


def print_summary(report: ReportRecord) -> None:
    """Print the summary on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    if judged := judge(report.loaded):
        Console(highlight=False).print(_answers(report.loaded.samples, judged))
    for name, value in _lines(report):
        console.print(f"[bold]{name:<12}[/bold] ", end="")
        console.print(value, markup=False)


def _answers(samples: tuple[SampleRecord, ...], judged: Judged) -> Table:
    table = Table(title="Held-out rows, base beside adapter", show_lines=True)
    for column in ("prompt", "base", "adapter"):
        table.add_column(column, ratio=1, overflow="fold")
    for sample in samples[:_SHOWN_SAMPLES]:
        is_exact = sample.adapter_matches
        mark = judged.mark(sample.adapter_answer, sample.expected, is_exact=is_exact)
        color = "green" if is_exact else "yellow" if judged.is_free_text else "red"
        table.add_row(
            _escaped(sample.prompt),
            _escaped(sample.base_answer),
            f"[{color}]{mark}[/{color}] {_escaped(sample.adapter_answer)}",
        )
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text.strip())


def _lines(report: ReportRecord) -> list[tuple[str, str]]:
    trained, saved = report.trained, report.saved
    lines = []
    if judged := judge(report.loaded):
        lines.append(("answers", judged.text))
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
        *places(report.run),
        *use(report),
    ]
