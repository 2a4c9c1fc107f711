"""`python -m benchmarks.growth`: scaling with rows, tokens per row, rank and adapters.

Writes the points, a table and a chart on logarithmic axes, where slope 1 is proportional growth.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.harness.long_rows import long_rows
from benchmarks.harness.messages import Growth, Job, Loading, LoadingRequest, Point, Run
from benchmarks.harness.processes import ask, run_fresh, run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import chat
from benchmarks.tools import TOOLS

ROWS, TOKENS, RANK, ADAPTERS = "rows", "tokens per row", "rank", "adapters loaded"
_BATCH = 4
_FEW_ROWS = 16


@dataclass
class _Growing:
    setting: Setting
    job: Job


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick", is_flag=True, help="The two smallest points of each series, as a smoke test."
)
@setting_options
def main(setting: Setting, quick: bool) -> None:  # noqa: FBT001
    """Measure how time and memory scale."""
    _, job = setting.prepare("long", 1)
    job = job.model_copy(update={"batch_size": _BATCH, "max_length": 4096})
    growing = _Growing(setting, job)
    last = 2 if quick else None
    points = [
        *_rows(growing, (16, 32, 64, 128)[:last]),
        *_tokens(growing, (0, 10, 40, 80)[:last]),
        *_ranks(growing, (4, 16, 64, 256)[:last]),
        *_adapters(growing, (1, 2, 4, 8)[:last]),
    ]
    file = setting.folder / "growth.json"
    file.write_text(Growth(points=points).model_dump_json(indent=2))
    command = [sys.executable, "-m", "benchmarks.harness.growth_picture", str(file)]
    run_fresh(command, setting.folder / "picture.log", os.environ)
    header = ("", "value", "seconds", "peak MB")
    rows = [(p.series, f"{p.x:g}", f"{p.seconds:.2f}", f"{p.peak_memory_mb:.0f}") for p in points]
    setting.publish("growth", [*table(header, rows), *_slopes(points)])


def slope(points: list[Point], of: Callable[[Point], float]) -> float:
    """Return the exponent k of y ~ x^k between the largest two values of x."""
    before, last = sorted(points, key=lambda point: point.x)[-2:]
    return math.log(of(last) / of(before)) / math.log(last.x / before.x)


def _slopes(points: list[Point]) -> Iterator[str]:
    for series in dict.fromkeys(point.series for point in points):
        mine = [point for point in points if point.series == series]
        seconds = slope(mine, lambda point: point.seconds)
        memory = slope(mine, lambda point: point.peak_memory_mb)
        yield f"{series}: seconds scale as x^{seconds:.2f}, memory as x^{memory:.2f}.\n"


def _rows(it: _Growing, counts: tuple[int, ...]) -> Iterator[Point]:
    for count in counts:
        yield _point(ROWS, count, _train(it, f"rows-{count}", count, num_asides=0))


def _tokens(it: _Growing, asides: tuple[int, ...]) -> Iterator[Point]:
    for count in asides:
        run = _train(it, f"tokens-{count}", _FEW_ROWS, num_asides=count)
        assert run.outcome.num_tokens is not None  # noqa: S101 - ours says it
        yield _point(TOKENS, run.outcome.num_tokens / _FEW_ROWS, run)


def _ranks(it: _Growing, ranks: tuple[int, ...]) -> Iterator[Point]:
    for rank in ranks:
        changes = {"r": rank, "lora_alpha": 2 * rank}
        yield _point(RANK, rank, _train(it, f"rank-{rank}", _FEW_ROWS, num_asides=0, **changes))


def _adapters(it: _Growing, counts: tuple[int, ...]) -> Iterator[Point]:
    adapter = _train(it, "adapter", 2 * _BATCH, num_asides=0).outcome.adapter
    for count in counts:
        request = LoadingRequest(
            base=it.job.base, dtype=it.job.dtype, adapter=adapter, num_adapters=count
        )
        file = it.job.folder / f"adapters-{count}.json"
        (loading,) = ask("many_adapters", request, Loading, file, it.setting.variables)
        yield Point(series=ADAPTERS, x=count, **loading.model_dump())


def _train(it: _Growing, name: str, num_rows: int, *, num_asides: int, **changes: int) -> Run:
    click.echo(name, err=True)
    folder = it.job.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    file: Path = folder / "train.jsonl"
    rows = (chat("", prompt, answer) for prompt, answer in long_rows(num_rows, 0, num_asides))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = it.job.model_copy(
        update={"folder": folder, "train": file, "num_steps": num_rows // _BATCH, **changes}
    )
    return run_tool(name, TOOLS["ours"], job, 1, it.setting.variables)


def _point(series: str, x: float, run: Run) -> Point:
    memory = run.peak_memory_mb
    return Point(series=series, x=x, seconds=run.seconds_training, peak_memory_mb=memory)


if __name__ == "__main__":
    main()
