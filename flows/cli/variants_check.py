"""The output of `adapterflow check` for many variants: how many, how long, how much disk.

One variant is forecast as `check` does it for a training; the others are taken to need as much in
proportion to their rows, epochs and rank.
"""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from flows.cli.early_checks import CheckedSet, check_bases, check_set
from flows.cli.process import show_progress
from tasks.config import TrainAdapterConfig, TrainVariantsConfig
from tasks.config.lora import DEFAULT_RANK
from tasks.config.reading import read_settings
from tasks.engine.forecast import Forecast
from tasks.records import PlanRecord, Record
from tasks.runtime.libraries import import_libraries_of_checks

_BYTES_PER_PARAMETER = 4
_COPIES = 5
"""Of an adapter: fresh, trained and saved, in the journal, and in MLflow."""
_OTHER_BYTES = 250_000
"""Of a variant: pictures, reports and records, in its folder and in MLflow."""
_BYTES_PER_TOKEN = 8
_MB = 1e6


class SetForecast(Record):
    """What a set of variants will take."""

    plan: PlanRecord
    num_processes: int
    first: Forecast
    """Of the first variant; of a search, of the settings that are not searched."""
    seconds_training: float | None
    """Of all variants, one after the other, without the seconds around each; None without a
    probe."""
    disk_bytes: int


def check_variants(
    file: Path, overrides: Sequence[str], *, with_probe: bool, as_json: bool
) -> None:
    """Forecast a set of variants, and print the forecast.

    Raises:
        UserError: the input can't work.
    """
    config = read_settings(TrainVariantsConfig, file, overrides)
    checked = check_set(config)
    show_progress()
    import_libraries_of_checks()
    check_bases(checked)
    from flows.cli.check import forecast_of, print_forecast

    first = forecast_of(checked.configs[0], with_probe=with_probe)
    found = _of_all(config, checked, first)
    if as_json:
        click.echo(found.model_dump_json())
        return
    _print(found)
    click.echo(f"\nthe first variant{' (without the search)' if config.variants.search else ''}:")
    print_forecast(first)


def _rank(config: TrainAdapterConfig) -> int:
    return config.lora.rank or DEFAULT_RANK


def _of_all(config: TrainVariantsConfig, checked: CheckedSet, first: Forecast) -> SetForecast:
    configs, plan = checked.configs, checked.plan
    # A variant may count its steps, and another its epochs over rows.
    rows = list(plan.num_rows.values()) or [first.data.train.num_rows] * len(configs)
    num_searched = plan.num_variants if config.variants.search else 1
    work = [
        _work(one, count) / _work(configs[0], rows[0])
        for one, count in zip(configs, rows, strict=True)
    ]
    ranks = [_rank(one) / _rank(configs[0]) for one in configs]
    adapter_bytes = _COPIES * _BYTES_PER_PARAMETER * first.num_trainable_parameters
    num_tokens = first.data.train.num_tokens + (
        first.data.eval.num_tokens if first.data.eval else 0
    )
    tokens_bytes = _BYTES_PER_TOKEN * num_tokens / rows[0]
    disk = sum(
        adapter_bytes * rank + tokens_bytes * count + _OTHER_BYTES
        for rank, count in zip(ranks, rows, strict=True)
    )
    each = first.seconds_training
    return SetForecast(
        plan=plan,
        num_processes=config.variants.num_processes,
        first=first,
        seconds_training=None if each is None else each * sum(work) * num_searched,
        disk_bytes=int(disk * num_searched),
    )


def _work(config: TrainAdapterConfig, num_rows: int) -> float:
    """Return what a training's time is in proportion to, for variants of the same data."""
    training = config.training
    if training.max_steps:
        return training.max_steps * training.batch_size * training.gradient_accumulation_steps
    return training.num_train_epochs * num_rows


def _print(found: SetForecast) -> None:
    from flows.cli.check import duration
    from tasks.variants.plan_variants import left_out_text, plan_text

    lines = [("variants", plan_text(found.plan))]
    if found.plan.left_out:
        lines.append(("warning", left_out_text(found.plan)))
    if found.seconds_training is None:
        lines.append(("time", "needs the probe"))
    else:
        number = found.num_processes
        shared = duration(found.seconds_training / min(number, found.plan.num_variants))
        beside = f", {shared} in {number} processes that have a device each" if number > 1 else ""
        time = f"{duration(found.seconds_training)} of training and evaluation{beside}"
        lines.append(("time", f"{time}; some seconds more for each variant's checks and records"))
    lines.append(("disk", f"about {found.disk_bytes / _MB:,.0f} MB, in run folders and in MLflow"))
    console = Console(highlight=False, soft_wrap=True)
    for name, value in lines:
        console.print(f"[bold]{name:<12}[/bold] ", end="")
        console.print(value, markup=False)
