"""The command line's part for what trained adapters are put to: `adapterflow predict`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tasks.errors import UserError
from tasks.records import PredictionRecord

if TYPE_CHECKING:
    from tasks.config import PredictBatchConfig

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("target", metavar="CONFIG.yaml|ADAPTER")
@click.argument("rows", metavar="[INPUT]", required=False, type=_PATH)
@click.argument("output", metavar="[OUTPUT]", required=False, type=_PATH)
@click.option("--base-model", help="The base, if not the one that the adapter was made for.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change one setting, such as max_new_tokens=64; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def predict(  # noqa: PLR0913 - what a user may give
    target: str,
    rows: Path | None,
    output: Path | None,
    base_model: str | None,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
) -> None:
    """Answer the rows of INPUT, and write them with their answers to OUTPUT.

    Both are JSONL, CSV or Parquet. ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…;
    several adapters on one base are named in a CONFIG.yaml. Called again after it was stopped, it
    goes on behind the last whole chunk.
    """
    files = {"input": rows and str(rows.absolute()), "output": output and str(output.absolute())}
    given = {**files, "base_model.source": base_model}
    # JSON is YAML, whatever characters a path has.
    first = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    config = _config(target, [*first, *overrides])
    from tasks.engine.question_files import open_questions

    open_questions(config)
    from flows.command_line import prepare_process

    prepare_process()
    from flows.predict_batch import predict_batch

    with _told_how_to_go_on():
        record = predict_batch(config)
    assert isinstance(record, PredictionRecord)  # noqa: S101 - the flow has no other result
    if as_json:
        click.echo(record.model_dump_json())
        return
    click.echo(f"{record.num_answered} of {record.num_rows} rows answered: {record.output.path}")


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """End with status 1 when the work failed or was stopped."""
    # Prefect ends the run on SIGTERM, and then sends the process the signal once more.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it was, say how to go on
        reason = f"failed: {str(error).strip() or type(error).__name__}"
        click.echo(f"the run {reason if isinstance(error, Exception) else 'was stopped'}", err=True)
        click.echo("to go on: give the same command again", err=True)
        raise SystemExit(1) from None


def _config(target: str, overrides: list[str]) -> "PredictBatchConfig":
    from tasks.config import PredictBatchConfig
    from tasks.config.reading import read_settings, settings_here

    if target.endswith((".yaml", ".yml")):
        return read_settings(PredictBatchConfig, Path(target), overrides)
    if not any(one.startswith("output=") for one in overrides):
        raise UserError("give INPUT and OUTPUT behind the adapter, or one CONFIG.yaml")
    given = {"adapters": [{"source": target}]}
    return settings_here(PredictBatchConfig, given, overrides, "predict")
