"""`python -m benchmarks.predicting`: batch inference by `adapterflow predict` and by plain loops.

The demo's rows on a base with an adapter, in the dtype of its training and in float32: one by one,
in batches in their order, and as `predict` does it. Loading is not included.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click

from benchmarks.harness.generation_loop import Asked, Generated
from benchmarks.harness.messages import Job
from benchmarks.harness.processes import ADAPTERFLOW, ask, run_fresh, run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.tools import TOOLS
from tasks.records import PredictionRecord

_BATCH, _NEW_TOKENS = 16, 48
_ALONE, _BATCHED = "generate, one by one", f"generate, batches of {_BATCH} in order"
_LOOPS = {_ALONE: 1, _BATCHED: _BATCH}
_OURS = "adapterflow predict"
_HEADER = (
    "",
    "rows/s",
    "times one by one",
    "times in batches",
    f"same answers as {_OURS}",
)


@dataclass
class _Measured:
    """How long each way took in each repeat, and what it answered."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, list[str]] = field(default_factory=dict)

    def add(self, way: str, seconds: float, answers: list[str]) -> None:
        self.seconds[way].append(seconds)
        self.answers[way] = answers

    def lines(self, dtype: str) -> Iterator[tuple[str, ...]]:
        """Yield the cells of a line for each way."""
        took = {way: median(seconds) for way, seconds in self.seconds.items()}
        ours = self.answers[_OURS]
        for way, answers in self.answers.items():
            ratios = [f"{took[loop] / took[way]:.2f}" for loop in _LOOPS]
            same = sum(map(str.__eq__, answers, ours))
            rate = f"{len(ours) / took[way]:.2f}"
            yield f"{way}, {dtype}", rate, *ratios, f"{same} of {len(ours)}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, rows: int, repeats: int) -> None:
    """Measure the rate of batch inference."""
    prepared, job = setting.with_steps(10).prepare("demo", rows)
    click.echo("training the adapter", err=True)
    adapter = run_tool("ours", TOOLS["ours"], job, 1, setting.variables).outcome.adapter
    assert adapter is not None  # noqa: S101 - it was saved
    lines: list[tuple[str, ...]] = []
    for dtype in dict.fromkeys((job.dtype, "float32")):
        measured = _Measured()
        for repeat in range(repeats):
            for way, size in _LOOPS.items():
                click.echo(f"{dtype}  repeat {repeat + 1}  {way}", err=True)
                asked = Asked(
                    base=job.base,
                    adapter=adapter,
                    rows=prepared.held_out,
                    dtype=dtype,
                    batch_size=size,
                    max_new_tokens=_NEW_TOKENS,
                )
                file = job.folder / f"loop-{dtype}-{size}-{repeat}.json"
                (found,) = ask("generation_loop", asked, Generated, file, setting.variables)
                measured.add(way, found.seconds, found.answers)
            click.echo(f"{dtype}  repeat {repeat + 1}  {_OURS}", err=True)
            output = job.folder / f"answers-{dtype}-{repeat}.jsonl"
            seconds = _predict(job, adapter, prepared.held_out, dtype, output, setting.variables)
            said = [json.loads(line)["answer"] for line in output.read_text().splitlines()]
            measured.add(_OURS, seconds, said)
        lines += measured.lines(dtype)
    setting.publish("predicting", table(_HEADER, lines))


def _predict(  # noqa: PLR0913 - what to answer, with what, and where it runs
    job: Job, adapter: Path, rows: Path, dtype: str, output: Path, variables: Mapping[str, str]
) -> float:
    """Answer rows by the command line, and return the seconds without loading."""
    settings = {
        "max_new_tokens": _NEW_TOKENS,
        "batch_size": _BATCH,
        "base_model.source": job.base,
        "base_model.dtype": dtype,
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    log = output.with_suffix(".log")
    command = [*ADAPTERFLOW, "predict", str(adapter), str(rows), str(output)]
    run_fresh([*command, *options, "--json"], log, variables)
    told = next(x for x in log.read_text().splitlines() if x.startswith('{"output"'))
    return PredictionRecord.model_validate_json(told).seconds


if __name__ == "__main__":
    main()
