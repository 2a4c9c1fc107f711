"""The command line's part for what trained adapters are put to: `predict` to `bundle`."""

import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tasks.errors import UserError, VerificationError
from tasks.records import PredictionRecord

if TYPE_CHECKING:
    from tasks.config import PredictBatchConfig

_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1, min_open=True)


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
    from tasks.engine.scoring.question_files import open_questions

    open_questions(config)
    from flows.cli.process import prepare_process

    prepare_process()
    from flows.predict_batch import predict_batch

    with _told_how_to_go_on():
        record = predict_batch(config)
    assert isinstance(record, PredictionRecord)  # noqa: S101 - the flow has no other result
    if as_json:
        click.echo(record.model_dump_json())
        return
    click.echo(f"{record.num_answered} of {record.num_rows} rows answered: {record.output.path}")


@click.command()
@click.argument("adapter")
@click.argument("target", metavar="FOLDER|FILE.gguf", type=_PATH)
@click.option("--merged", is_flag=True, help="Merge it into its base: a model that needs no PEFT.")
@click.option("--base-model", help="The base, if not the one that the adapter was made for.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the merged weights; auto is the base's own.",
)
@click.option("--rows", type=_PATH, help="Rows with answers on which both must score alike.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def export(  # noqa: PLR0913 - what a user may give
    adapter: str,
    target: Path,
    merged: bool,  # noqa: FBT001
    base_model: str | None,
    dtype: str,
    rows: Path | None,
    max_new_tokens: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Write ADAPTER to FOLDER, alone or merged into its base, or to FILE.gguf for llama.cpp.

    ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…. A merged model is read back and
    compared with base and adapter before FOLDER appears.
    """
    from tasks.runtime.atomic_files import check_new

    is_gguf = target.suffix == ".gguf"
    if is_gguf and merged:
        raise UserError(f"a merged model is a folder, and {target} names a GGUF file")
    check_new(target)
    _show_steps()
    from tasks.inference import exporting

    if is_gguf:
        written = exporting.adapter_as_gguf(adapter, target, base_model)
        click.echo(written.model_dump_json() if as_json else exporting.gguf_lines(written))
    elif merged:
        with _failing_cleanly():
            record = exporting.merge_adapter(
                adapter, target, base_model, dtype, rows, max_new_tokens
            )
        click.echo(record.model_dump_json() if as_json else exporting.merged_lines(record))
    else:
        exporting.export_adapter(adapter, target)
        told = json.dumps({"folder": str(target)}) if as_json else f"the adapter is in {target}"
        click.echo(told)


@click.command()
@click.argument("adapter")
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private/--public", default=True, show_default=True, help="Where it is made.")
def push(adapter: str, repository: str, private: bool) -> None:  # noqa: FBT001
    """Push ADAPTER with its model card to ORG/NAME on the Hub; needs a token in HF_TOKEN.

    ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…. Only its own files are pushed, in
    one commit, whose address is printed.
    """
    _show_steps()
    from tasks.inference.exporting import push_to_hub

    address, remarks = push_to_hub(adapter, repository, private=private)
    for remark in remarks:
        click.echo(remark, err=True)
    click.echo(address)


@click.command()
@click.argument("folder", type=_PATH)
@click.argument("adapters", metavar="ADAPTER[=WEIGHT]...", nargs=-1, required=True)
@click.option("--method", default="cat", show_default=True, help="cat, svd, ties or dare_ties.")
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True
)
@click.option("--rank", type=click.IntRange(1), help="Of the result, with svd.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of DARE's choice.")
@click.option("--base-model", help="The base, if not the one that the first was made for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def combine(  # noqa: PLR0913 - what a user may give
    folder: Path,
    adapters: tuple[str, ...],
    method: str,
    density: float,
    rank: int | None,
    seed: int,
    base_model: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Write one adapter made of several to FOLDER.

    Each ADAPTER counts with its WEIGHT, 1 unless given. cat is the exact weighted sum, at the sum
    of the ranks; svd is its best approximation of a rank; ties is for adapters that disagree, and
    dare_ties for many of them. DENSITY is the share of the values that TIES and DARE keep.
    """
    from tasks.runtime.atomic_files import check_new

    check_new(folder)
    weighted = [_weighted(one) for one in adapters]
    _show_steps()
    from tasks.engine.adapters.combining import Combination
    from tasks.inference.exporting import combine_adapters, combined_lines

    how = Combination(method, density, rank, seed)
    with _failing_cleanly():
        record = combine_adapters(weighted, folder, base_model, how)
    click.echo(record.model_dump_json() if as_json else combined_lines(record))


@click.command()
@click.argument("folder", type=_PATH)
@click.argument("adapters", metavar="NAME=ADAPTER...", nargs=-1, required=True)
@click.option("--base-model", help="The base, if not the one that the first was made for.")
def bundle(folder: Path, adapters: tuple[str, ...], base_model: str | None) -> None:
    """Write several adapters of one base to FOLDER, as one MLflow model to serve.

    A request names its adapter by the param `adapter`; the first answers those that name none.
    """
    from tasks.config.adapter_name import check_adapter_name
    from tasks.config.reading import adapter_here
    from tasks.runtime.atomic_files import check_new

    check_new(folder)
    wanted = []
    for one in adapters:
        name, sign, source = one.partition("=")
        if not (sign and source and name):
            raise UserError(
                f"{one!r} is no NAME=ADAPTER, as in tickets=outputs/run/adapters/default"
            )
        try:
            check_adapter_name(name)
        except ValueError as error:
            raise UserError(f"{one!r} is no NAME=ADAPTER: {error}") from None
        wanted.append(adapter_here(source, name))
    _show_steps()
    from tasks.inference.serving import bundle_adapters, serve_command

    for remark in bundle_adapters(wanted, folder, base_model):
        click.echo(remark, err=True)
    click.echo(f"serve it with: {serve_command(folder)}")


def _weighted(given: str) -> tuple[str, float]:
    source, sign, weight = given.rpartition("=")
    if not sign:
        return given, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{given!r}: the weight behind = must be a number, as in a=0.5")
    return source, number


def _show_steps() -> None:
    """Show the engine's lines on stderr, of the libraries what is a warning."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    from flows.cli.console import quiet_libraries

    quiet_libraries()
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tasks").setLevel(logging.INFO)


@contextmanager
def _failing_cleanly() -> Iterator[None]:
    """End with one line and status 1 when a proof failed."""
    try:
        yield
    except VerificationError as error:
        click.echo(f"refused: {error}", err=True)
        raise SystemExit(1) from None


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
