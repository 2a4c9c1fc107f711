"""The commands that use trained adapters: `predict`, `export`, `push`, `combine` and `bundle`."""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli import options
from flows.cli.console import show_steps
from flows.cli.early_checks import check_sources
from flows.cli.process import exit_on_signal, prepare_process, print_reason
from tasks.errors import UserError, VerificationError

if TYPE_CHECKING:
    from tasks.config import PredictBatchConfig

_BASE_MODEL = "Base model, if not the one that the adapter was trained on."
_FIRST_BASE_MODEL = "Base model, if not the one that the first adapter was trained on."
_MAX_WEIGHT = 1_000_000
"""Of an adapter in a combination."""


@click.command()
@click.argument("target", metavar="CONFIG.yaml|ADAPTER")
@click.argument("rows", metavar="[INPUT]", required=False, type=options.PATH)
@click.argument("output", metavar="[OUTPUT]", required=False, type=options.PATH)
@click.option("--base-model", help=_BASE_MODEL)
@options.overrides("max_new_tokens=64")
@options.json_output
def predict(  # noqa: PLR0913 - what a user may give
    target: str,
    rows: Path | None,
    output: Path | None,
    base_model: str | None,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
) -> None:
    """Answer the rows of INPUT, and write both to OUTPUT.

    INPUT and OUTPUT are JSONL, CSV or Parquet. ADAPTER is a folder, a Hub id, models:/name@alias
    or runs:/…; a CONFIG.yaml can name several adapters on one base. A folder of `variants` stands
    for all of its adapters: the column that they were split by selects a row's. After an
    interruption, the same command resumes after the last complete chunk.
    """
    files = {"input": rows and str(rows.absolute()), "output": output and str(output.absolute())}
    given = {**files, "base_model.source": base_model}
    # The values are read as YAML. JSON is YAML, and quotes any character a path may have.
    first = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    config = _config(target, [*first, *overrides])
    from tasks.engine.adapters import find_adapter
    from tasks.engine.scoring import open_questions
    from tasks.inference.variant_sets import with_variants

    config = with_variants(config)
    open_questions(config)
    check_sources([one.source for one in config.adapters], config.tracking_uri)
    for one in config.adapters:
        if Path(one.source).is_dir():
            find_adapter(one.source)
    prepare_process(lambda: _check_adapters(config))
    from flows.predict_batch import predict_batch
    from tasks.records import PredictionRecord

    with _resumable():
        record = predict_batch(config)
    assert isinstance(record, PredictionRecord)  # noqa: S101 - the flow has no other result
    if as_json:
        click.echo(record.model_dump_json())
        return
    click.echo(f"{record.num_answered} of {record.num_rows} rows answered: {record.output.path}")


@click.command()
@click.argument("adapter")
@click.argument("target", metavar="FOLDER|FILE.gguf", type=options.PATH)
@click.option("--merged", is_flag=True, help="Merge it into its base: no PEFT needed.")
@click.option("--base-model", help=_BASE_MODEL)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the merged weights; auto: the base's own.",
)
@click.option(
    "--rows",
    type=options.PATH,
    help="Rows with answers on which merged model and adapter must score the same.",
)
@click.option("--max-new-tokens", type=options.MAX_NEW_TOKENS, default=128, show_default=True)
@options.json_output
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
    """Write ADAPTER to FOLDER, alone or merged, or to a GGUF file.

    ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…. A merged model is read back and
    compared with base and adapter before FOLDER is created. FILE.gguf is for llama.cpp.
    """
    from tasks.runtime.atomic_files import check_new

    is_gguf = target.suffix == ".gguf"
    if is_gguf and merged:
        raise UserError(f"a merged model is a folder, but {target} names a GGUF file")
    check_new(target)
    check_sources([adapter])
    show_steps()
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
        result = {"folder": str(target)}
        click.echo(json.dumps(result) if as_json else f"the adapter is in {target}")


@click.command()
@click.argument("adapter")
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--private/--public", default=True, show_default=True, help="Visibility of a new repository."
)
def push(adapter: str, repository: str, private: bool) -> None:  # noqa: FBT001
    """Push ADAPTER with its model card to ORG/NAME on the Hub.

    ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…. Only its own files are pushed, in
    one commit, whose address is printed. A token is needed in HF_TOKEN.
    """
    check_sources([adapter])
    show_steps()
    from tasks.inference.exporting import push_to_hub

    address, warnings = push_to_hub(adapter, repository, private=private)
    for warning in warnings:
        click.echo(warning, err=True)
    click.echo(address)


@click.command()
@click.argument("folder", type=options.PATH)
@click.argument("adapters", metavar="ADAPTER[=WEIGHT]...", nargs=-1, required=True)
@click.option("--method", default="cat", show_default=True, help="cat, svd, ties or dare_ties.")
@click.option(
    "--density",
    type=options.number(0, 1, above=True),
    default=0.5,
    show_default=True,
    help="Share of the values that ties and dare_ties keep.",
)
@click.option("--rank", type=options.integer(1, 16_384), help="Rank of the result, with svd.")
@click.option(
    "--seed",
    type=options.integer(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of dare_ties.",
)
@click.option("--base-model", help=_FIRST_BASE_MODEL)
@options.json_output
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
    """Combine several adapters of one base into one, in FOLDER.

    Each ADAPTER counts with its WEIGHT, 1 by default. cat is the exact weighted sum, at the sum of
    the ranks; svd is its best approximation of a given rank; ties is for adapters that disagree,
    and dare_ties for many of them.
    """
    from tasks.runtime.atomic_files import check_new

    check_new(folder)
    weighted = [_weighted(one) for one in adapters]
    check_sources([source for source, _ in weighted])
    show_steps()
    from tasks.engine.adapters import Combination
    from tasks.inference.exporting import combine_adapters, combined_lines

    how = Combination(method, density, rank, seed)
    with _failing_cleanly():
        record = combine_adapters(weighted, folder, base_model, how)
    click.echo(record.model_dump_json() if as_json else combined_lines(record))


@click.command()
@click.argument("folder", type=options.PATH)
@click.argument("adapters", metavar="NAME=ADAPTER...", nargs=-1, required=True)
@click.option("--base-model", help=_FIRST_BASE_MODEL)
def bundle(folder: Path, adapters: tuple[str, ...], base_model: str | None) -> None:
    """Write adapters of one base to FOLDER, as one MLflow model.

    The command that serves it is printed. A request selects its adapter with the param `adapter`;
    the first one is the default.
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
                f"{one!r} is not NAME=ADAPTER, as in tickets=outputs/run/adapters/default"
            )
        try:
            check_adapter_name(name)
        except ValueError as error:
            raise UserError(f"{one!r} is no NAME=ADAPTER: {error}") from None
        wanted.append(adapter_here(source, name))
    check_sources([one.source for one in wanted])
    show_steps()
    from tasks.inference.serving import bundle_adapters, serve_command

    for warning in bundle_adapters(wanted, folder, base_model):
        click.echo(warning, err=True)
    click.echo(f"serve it with: {serve_command(folder)}")


def _check_adapters(config: "PredictBatchConfig") -> None:
    from tasks.inference.adapters_on_base import check_early

    check_early(config)


def _weighted(given: str) -> tuple[str, float]:
    source, sign, weight = given.rpartition("=")
    if not sign:
        return given, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not abs(number) <= _MAX_WEIGHT:  # also of nan
        raise UserError(
            f"{given!r}: the weight after = must be a number up to {_MAX_WEIGHT:,}, as in a=0.5"
        )
    return source, number


@contextmanager
def _failing_cleanly() -> Iterator[None]:
    """Exit with one line and status 1 where a verification fails."""
    try:
        yield
    except VerificationError as error:
        click.echo(f"refused: {error}", err=True)
        raise SystemExit(1) from None


@contextmanager
def _resumable() -> Iterator[None]:
    """Exit with status 1 where the work fails or is stopped; the last line says how to resume."""
    # See `flows.cli.process.execute_and_print`.
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt can be resumed, too
        print_reason(error)
        click.echo("to resume: run the same command again", err=True)
        raise SystemExit(1) from None


def _config(target: str, overrides: list[str]) -> "PredictBatchConfig":
    from tasks.config import PredictBatchConfig
    from tasks.config.reading import read_settings, settings_here

    if target.endswith((".yaml", ".yml")):
        return read_settings(PredictBatchConfig, Path(target), overrides)
    if not any(one.startswith("output=") for one in overrides):
        raise UserError("give INPUT and OUTPUT after the adapter, or one CONFIG.yaml")
    given = {"adapters": [{"source": target}]}
    return settings_here(PredictBatchConfig, given, overrides, "predict")
