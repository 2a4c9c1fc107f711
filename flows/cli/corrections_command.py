"""The command `corrections`: answers that were judged become rows to learn from."""

import json
from pathlib import Path

import click

from flows.cli import options


@click.command()
@click.argument("answers", type=options.PATH)
@click.argument("output", type=options.PATH)
@click.option(
    "--as",
    "form",
    type=click.Choice(["pairs", "labels"]),
    default="pairs",
    show_default=True,
    help="pairs: chosen and rejected answers (dpo); labels: good and bad ones (KTO).",
)
@options.overrides("answer_column=reply")
@options.json_output
def corrections(
    answers: Path,
    output: Path,
    form: str,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
) -> None:
    """Turn corrected ANSWERS of `predict` into rows of preferences, in OUTPUT.

    ANSWERS is a file that `predict` has written, to which somebody added a column correction (the
    right answer), accepted (true or false), or both. OUTPUT is JSONL, CSV or Parquet, and is what
    data.train of a training or retraining names.
    """
    from tasks.config import CorrectionsConfig
    from tasks.config.reading import settings_here

    files = {"input": str(answers.absolute()), "output": str(output.absolute()), "form": form}
    # The values are read as YAML. JSON is YAML, and quotes any character a path may have.
    first = [f"{key}={json.dumps(value)}" for key, value in files.items()]
    config = settings_here(CorrectionsConfig, {}, [*first, *overrides], "corrections")
    from tasks.inference.corrections import lines, write_corrections

    record = write_corrections(config)
    click.echo(record.model_dump_json() if as_json else lines(record, config.form))
