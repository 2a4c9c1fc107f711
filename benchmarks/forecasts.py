"""`python -m benchmarks.forecasts`: the forecasts of `adapterflow check` and the measured values.

The demo, the demo on a 4-bit base, and Banking77 if its folder is given: each is checked and then
trained, in turn, by the commands that a user runs.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.harness.messages import Peak, RunRequest
from benchmarks.harness.processes import CHECKOUT, ask, run_fresh
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table

_DEMO = CHECKOUT / "deployments" / "demo" / "tickets.yaml"
_MEMORY, _TIME = 0.2, 0.3
"""Largest accepted relative errors of the forecasts."""


@dataclass(frozen=True)
class _Pair:
    """Forecast and measured: peak of the run in MB, seconds of training with its evaluations."""

    memory: tuple[float, float]
    seconds: tuple[float, float]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, repeats: int) -> None:
    """Measure the error of the forecasts."""
    cases = dict(_cases(setting))
    pairs: dict[str, list[_Pair]] = {title: [] for title in cases}
    for repeat in range(1, repeats + 1):
        for number, (title, words) in enumerate(cases.items()):
            click.echo(f"repeat {repeat}  {title}", err=True)
            pairs[title].append(_pair(setting, words, f"{number}-{repeat}"))
    header = ("", "MB forecast", "MB measured", "error", "seconds forecast", "s measured", "error")
    rows = [(title, *_medians(found)) for title, found in pairs.items()]
    note = f"Accepted errors: {_MEMORY:.0%} of memory, {_TIME:.0%} of time.\n"
    setting.publish("forecasts", [*table(header, rows), note])


def _cases(setting: Setting) -> Iterator[tuple[str, list[str]]]:
    steps = [f"--set=training.max_steps={setting.num_steps}"] if setting.num_steps else []
    demo = [str(_DEMO), f"--set=base_model.source={setting.base}", *steps]
    yield "demo", demo
    yield "demo, 4-bit base", [*demo, "--set=base_model.quantization=4bit"]
    if setting.why_not("banking77"):
        return
    prepared, job = setting.prepare("banking77", 64)
    config = {
        "base_model": {"source": str(prepared.base)},
        "data": {"train": str(job.train), "eval": str(job.held_out), "max_length": job.max_length},
        "lora": {"target_modules": "all-linear"},
        "training": {
            "batch_size": job.batch_size,
            "max_steps": job.num_steps,
            "learning_rate": job.learning_rate,
        },
    }
    file = job.folder / "config.yaml"
    file.write_text(json.dumps(config))  # which is YAML, too
    yield "Banking77", [str(file)]


def _pair(setting: Setting, words: list[str], name: str) -> _Pair:
    said = _adapterflow(setting, name, "check", words)
    folder = f"--set=output.folder={setting.folder / name}"
    report = _adapterflow(setting, name, "train", [*words, folder])
    run = {key: report["run"][key] for key in ("tracking_uri", "flow_run_id")}
    file = setting.folder / f"run-{name}.json"
    (met,) = ask("recorded", RunRequest(**run), Peak, file, setting.variables)
    probe = said["probe"]
    evaluating = said["num_evaluations"] * probe["seconds_per_evaluation"]
    return _Pair(
        (probe["peak_memory_bytes"] / 1e6, met.peak_memory_mb),
        (
            said["num_steps"] * probe["seconds_per_step"] + evaluating,
            report["trained"]["seconds_training"],
        ),
    )


def _adapterflow(setting: Setting, name: str, command: str, words: list[str]) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("adapterflow"))
    silent = ["--set=inference.sample_rows=0", "--json"]
    log = setting.folder / f"{command}-{name}.log"
    run_fresh([program, command, *words, *silent], log, setting.variables)
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _medians(pairs: list[_Pair]) -> Iterator[str]:
    for kind in ([pair.memory for pair in pairs], [pair.seconds for pair in pairs]):
        yield f"{median(forecast for forecast, _ in kind):.0f}"
        yield f"{median(met for _, met in kind):.0f}"
        yield f"{median(forecast / met - 1 for forecast, met in kind):+.0%}"


if __name__ == "__main__":
    main()
