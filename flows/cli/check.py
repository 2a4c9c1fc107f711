"""The output of `adapterflow check`: sizes, tokens, steps, and from a probe, memory and time."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tasks.config import LaunchSettings, TrainAdapterConfig, TrainingSettings
from tasks.engine.data.rendering import END, START, shown_text
from tasks.engine.data.rows import unread_text
from tasks.engine.data.splits import odd_text
from tasks.engine.data.tokens import changes
from tasks.engine.forecast import Forecast, forecast
from tasks.launching import is_alone, num_processes, train_in_processes
from tasks.records import DataRecord, InjectedRecord, ShownRow, SplitRecord, TrainedRecord
from tasks.runtime import home
from tasks.validate_inputs import check_inputs

if TYPE_CHECKING:
    from tasks.engine.training import OnTraining

_MB = 1e6
_SECONDS_A_MINUTE = 60
_SECONDS_AN_HOUR = 3600


def forecast_of(config: TrainAdapterConfig, *, with_probe: bool) -> Forecast:
    """Return the forecast of a training; nothing is left behind.

    Raises:
        UserError: the input cannot work, with the message that the run itself would give.
    """
    # The nodes of a cluster see the home folder, and have /tmp for themselves.
    beside = home.home() if config.launch.cluster else None
    with tempfile.TemporaryDirectory(prefix=".check-", dir=beside) as folder:
        checked = check_inputs(config, Path(folder))
        train_group = None if is_alone(config.launch) else partial(_train_group, config.launch)
        return forecast(
            config,
            *checked,
            with_probe=with_probe,
            num_processes=num_processes(config.launch),
            train_group=train_group,
            folder=Path(folder),
        )


def _train_group(  # noqa: PLR0913 - what a forecast gives
    launch: LaunchSettings,
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    checkpoints: Path,
    on_progress: "OnTraining",
    max_eval_rows: int,
) -> tuple[TrainedRecord, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    trained, memory, gpu_memory, sharded = train_in_processes(
        injected, data, settings, checkpoints, launch, on_progress, max_eval_rows=max_eval_rows
    )
    return trained, memory, gpu_memory, sharded.own_bytes if sharded else ()


def print_forecast(found: Forecast) -> None:
    """Print the forecast on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for name, value in (*_sizes(found), *_cost(found)):
        console.print(f"[bold]{name:<12}[/bold] ", end="")
        console.print(value, markup=False)
    for shown in found.data.shown:
        print_row(shown, console)


def print_row(shown: ShownRow, console: Console) -> None:
    """Print a row as the model sees it; on a terminal, what is trained on is bold."""
    about = f"{shown_text(shown)}; trained on what is between {START} and {END}:"
    console.print(f"\n{about}", style="bold", markup=False)
    text = Text(shown.text)
    text.highlight_regex(f"{START}[^{END}]*{END}", "bold green")
    console.print(text)


def _sizes(found: Forecast) -> list[tuple[str, str]]:
    share = found.num_trainable_parameters / found.num_total_parameters
    quantized = "" if found.quantization == "none" else f" in {found.quantization}"
    adapter = f"{found.num_trainable_parameters:,} of {found.num_total_parameters:,} parameters"
    steps = f"{found.num_steps:,} of {found.rows_per_step} rows"
    splits = (("training", found.data.train), ("held out", found.data.eval))
    return [
        ("base", f"{found.base}, {found.dtype}{quantized}, for {found.task}"),
        ("adapter", f"{adapter} train ({share:.2%})"),
        *(
            (name if part is split else f"· {part.name}", _rows(part, found.data.labels))
            for name, split in splits
            if split
            for part in (split, *split.parts)
        ),
        *([("not read", unread_text(found.data.unread))] if found.data.unread else []),
        *([("learned", f"preferences ({found.learned})")] if found.learned else []),
        ("steps", f"{steps}; evaluations: {found.num_evaluations}"),
        *(("warning", change) for change in changes(found.data)),
        *(("warning", odd_text(one)) for one in found.data.odd),
        *(("warning", warning) for warning in found.warnings),
        *(("note", note) for note in found.notes),
    ]


def _rows(split: SplitRecord, labels: Sequence[str]) -> str:
    tokens = f"{split.num_tokens:,} tokens (longest {split.longest_tokens})"
    trained = f"{split.num_trained_tokens:,} of them trained on"
    if labels:
        trained = f"{len(labels)} labels"
    parts = [f"{split.num_rows:,} rows{split.made_of}, {tokens}, {trained}"]
    if lengths := split.answer_lengths:
        chosen, rejected = lengths
        parts.append(f"answers have {chosen:.0f} tokens (chosen) and {rejected:.0f} (rejected)")
    if split.num_untrained_answers:
        parts.append(f"{split.num_untrained_answers:,} answers are not trained on")
    return "; ".join(parts)


def _cost(found: Forecast) -> list[tuple[str, str]]:
    states = f"adapter, gradients and optimizer {found.adapter_bytes / _MB:,.0f} MB"
    probe = found.probe
    if probe is None:
        return [("memory", f"{states}; the total needs the probe"), ("time", "needs the probe")]
    peak, base = probe.peak_memory_bytes / _MB, probe.base_bytes / _MB
    each = f" in each of {found.num_processes} processes" if found.num_processes > 1 else ""
    part = f", {probe.own_base_bytes / _MB:,.0f} MB of it in each" if probe.own_base_bytes else ""
    lines = [
        ("batches", probe.batching),
        ("memory", f"{peak:,.0f} MB at the peak{each} (base {base:,.0f} MB{part}, {states})"),
    ]
    if probe.peak_gpu_bytes:
        lines.append(("GPU memory", f"{probe.peak_gpu_bytes / _MB:,.0f} MB at the peak{each}"))
    time = duration(found.seconds_training or 0.0)
    step = f"{probe.seconds_per_step:.2f} s a step"
    if probe.seconds_reference:
        step += f", {duration(probe.seconds_reference)} for the reference"
    return [*lines, ("time", f"{time} of training and evaluation, {step}")]


def duration(seconds: float) -> str:
    """Return a time as text, in the unit that suits it."""
    if seconds < 2 * _SECONDS_A_MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _SECONDS_AN_HOUR:
        return f"{seconds / _SECONDS_A_MINUTE:.0f} min"
    return f"{seconds / _SECONDS_AN_HOUR:.1f} h"
