"""`python -m benchmarks.predicting`: batch inference by `adapterflow predict` and by plain loops.

The demo's rows on a base with an adapter: one by one, in batches in their order, and as `predict`
does it. Loading is not included.
"""

import json
from statistics import median

import click

from benchmarks.harness.generation_loop import Asked, Generated
from benchmarks.harness.processes import ADAPTERFLOW, ask, run_fresh, run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.tools import TOOLS
from tasks.records import PredictionRecord

_BATCH, _NEW_TOKENS = 16, 48
_LOOPS = {"generate, one by one": 1, f"generate, batches of {_BATCH} in order": _BATCH}
_OURS = "adapterflow predict"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, rows: int, repeats: int) -> None:
    """Measure the rate of batch inference."""
    prepared, job = setting.with_steps(10).prepare("demo", rows)
    click.echo("training the adapter", err=True)
    adapter = run_tool("ours", TOOLS["ours"], job, 1, setting.variables).outcome.adapter
    seconds: dict[str, list[float]] = {way: [] for way in (*_LOOPS, _OURS)}
    said: dict[str, list[str]] = {}
    for repeat in range(repeats):
        for way, size in _LOOPS.items():
            click.echo(f"repeat {repeat + 1}  {way}", err=True)
            asked = Asked(
                base=job.base,
                adapter=adapter,
                rows=prepared.held_out,
                dtype=job.dtype,
                batch_size=size,
                max_new_tokens=_NEW_TOKENS,
            )
            file = job.folder / f"loop-{size}-{repeat}.json"
            (found,) = ask("generation_loop", asked, Generated, file, setting.variables)
            seconds[way].append(found.seconds)
            said[way] = found.answers
        click.echo(f"repeat {repeat + 1}  {_OURS}", err=True)
        output = job.folder / f"answers-{repeat}.jsonl"
        options = [f"--set=max_new_tokens={_NEW_TOKENS}", f"--set=batch_size={_BATCH}", "--json"]
        command = [*ADAPTERFLOW, "predict", str(adapter), str(prepared.held_out), str(output)]
        log = job.folder / f"predict-{repeat}.log"
        run_fresh([*command, *options], log, setting.variables)
        told = next(x for x in log.read_text().splitlines() if x.startswith('{"output"'))
        seconds[_OURS].append(PredictionRecord.model_validate_json(told).seconds)
        said[_OURS] = [json.loads(line)["answer"] for line in output.read_text().splitlines()]
    slowest = median(seconds[next(iter(_LOOPS))])
    lines = (
        (
            way,
            f"{rows / median(took):.2f}",
            f"{slowest / median(took):.2f}",
            f"{sum(map(str.__eq__, said[way], said[_OURS]))} of {rows}",
        )
        for way, took in seconds.items()
    )
    header = ("", "rows/s", "times", f"same answers as {_OURS}")
    setting.publish("predicting", table(header, lines))


if __name__ == "__main__":
    main()
