"""The commands of a training: `init`, `check`, `train` and `resume`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli import options
from flows.cli.early_checks import check_training
from flows.cli.process import check_base, execute_and_print, prepare_process, show_progress
from tasks.durability.step_name import StepName
from tasks.errors import AdapterflowError, UserError
from tasks.runtime.atomic_files import check_new
from tasks.runtime.libraries import import_libraries_of_checks

if TYPE_CHECKING:
    from tasks.config import TrainAdapterConfig


@click.command()
@click.argument("data_file", metavar="DATA", type=options.PATH)
@click.option(
    "--base-model",
    default="HuggingFaceTB/SmolLM2-135M-Instruct",
    show_default=True,
    help="A Hub id, a local folder or a GGUF file.",
)
@click.option("--output", "-o", type=options.PATH, default="adapterflow.yaml", show_default=True)
@click.option("--name", help="Of the experiment and registered model; default: made from DATA's.")
@click.option(
    "--retrain", "retrains", is_flag=True, help="For `retrain`: also write a file of held-out rows."
)
@click.option(
    "--held-out",
    "share",
    type=options.number(0, 0.5, above=True),
    help="Share of the rows to hold out; default: a tenth, at least 100, at most half.",
)
def init(  # noqa: PLR0913 - one parameter an option
    data_file: Path,
    base_model: str,
    output: Path,
    name: str | None,
    retrains: bool,  # noqa: FBT001
    share: float | None,
) -> None:
    """Write a starting configuration for DATA, and show its first row.

    With --retrain, the rows are also copied into two files beside the configuration: those to train
    on, and those that decide. DATA is unchanged.
    """
    from flows.cli.starting_files import write_retraining, write_training

    if share is not None and not retrains:
        raise UserError("--held-out was given without --retrain; add it, or remove --held-out")
    if output.exists():
        raise UserError(f"{output} already exists; choose another file with --output")
    check_new(output)
    if retrains:
        config, notes = write_retraining(output, str(data_file), base_model, name, share)
    else:
        config, notes = write_training(output, str(data_file), base_model, name)
    click.echo("\n".join(notes))
    verb = "retrain" if retrains else "train"
    click.echo(f"wrote {output}; start training with: adapterflow {verb} {output}")
    _show_first_row(config)


def _show_first_row(config: "TrainAdapterConfig") -> None:
    """Print the first row as the model will see it, if its tokenizer can be had now."""
    if config.base_model.source.endswith(".gguf"):  # converting it takes minutes
        click.echo("adapterflow check shows the first row as the model sees it", err=True)
        return
    show_progress()
    from rich.console import Console

    from flows.cli.check import print_row
    from tasks.engine.preparation import first_row

    try:
        shown = first_row(config.data, config.base_model, config.training.objective)
    except AdapterflowError as error:
        click.echo(f"the first row as the model sees it can't be shown yet: {error}", err=True)
        return
    print_row(shown, Console(highlight=False, soft_wrap=True))


@click.command()
@options.config_file
@options.overrides("lora.r=32")
@click.option(
    "--probe/--no-probe", default=True, help="Train a few steps to measure memory and time."
)
@options.json_output
def check(
    config_file: Path,
    overrides: tuple[str, ...],
    probe: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Forecast tokens, steps, memory and time of a training, or of all variants of one.

    Nothing is recorded or left behind.
    """
    from tasks.config.reading import has_variants, read_config

    if has_variants(config_file):
        from flows.cli.variants_check import check_variants

        check_variants(config_file, overrides, with_probe=probe, as_json=as_json)
        return
    config = read_config(config_file, overrides)
    check_training(config)
    show_progress()
    import_libraries_of_checks()
    from flows.cli.check import forecast_of, print_forecast

    found = forecast_of(config, with_probe=probe)
    if as_json:
        click.echo(found.model_dump_json())
        return
    print_forecast(found)


@click.command()
@options.config_file
@options.overrides("lora.r=32")
@options.json_output
def train(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Train an adapter as configured in CONFIG.yaml."""
    from tasks.config.reading import has_variants, read_config

    if has_variants(config_file):
        raise UserError(
            f"{config_file} has a section variants; train all of them with: adapterflow variants "
            f"{config_file}"
        )
    config = read_config(config_file, overrides)
    row_formats = check_training(config)
    prepare_process(lambda: check_base(config, row_formats))
    from flows.cli.runs import create_run

    execute_and_print(create_run(config), as_json=as_json)


@click.command()
@click.argument("run", required=False)
@click.option(
    "--redo-from",
    type=click.Choice([*map(str, StepName)]),
    help="Run this step and those after it again.",
)
@options.json_output
def resume(run: str | None, redo_from: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Resume a run that failed, was stopped or was killed.

    Completed steps are not repeated. RUN is the run's id or name; without it, the run of this home
    that was interrupted last is resumed.
    """
    from flows.cli.run_search import find_run, interrupted_runs

    found = [find_run(run)] if run else interrupted_runs()
    prepare_process()
    from flows.cli.runs import reopen_last, reopen_run

    first_step = StepName(redo_from) if redo_from else None
    flow_run = reopen_run(found[0], first_step) if run else reopen_last(found, first_step)
    click.echo(f"resuming {flow_run.name}", err=True)
    execute_and_print(flow_run, as_json=as_json)
