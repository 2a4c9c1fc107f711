"""The command of many trainings: `variants`."""

from pathlib import Path

import click

from flows.cli import options
from flows.cli.early_checks import check_bases, check_set
from flows.cli.process import execute_and_print, prepare_process


@click.command()
@options.config_file
@options.overrides("variants.num_processes=2")
@options.json_output
def variants(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Train many adapters on one base, as the section `variants` of CONFIG.yaml says.

    A variant that fails does not stop the others; `resume` repeats only what is missing, and
    `check` tells before how many variants there are and what they take.
    """
    from tasks.config import TrainVariantsConfig
    from tasks.config.reading import read_settings

    config = read_settings(TrainVariantsConfig, config_file, overrides)
    checked = check_set(config)
    prepare_process(lambda: check_bases(checked))
    from flows.cli.runs import create_run
    from flows.variants.places import check_place

    check_place(config)
    execute_and_print(create_run(config), as_json=as_json)
