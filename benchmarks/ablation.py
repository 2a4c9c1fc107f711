"""`python -m benchmarks.ablation`: the gain of each of the engine's techniques on each workload.

Each technique is switched off alone, in pairs of a few steps with and without it, on the same rows
and from the same weights, one right after the other with alternating order. A pair yields a ratio
of rows per second and one of peak memory; reported are the pairs' median and its 90 % interval.

The limits on kept shapes take effect when a process starts, so these pairs are of two processes,
whose memory grows with each pair. The cost of the garbage collector while libraries are imported
and when the process exits is a workload of its own.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

import click

from benchmarks.harness.messages import Ablation, Job, Message, Pair, Ready, Trial, Trialed
from benchmarks.harness.processes import ProcessFailed, Worker, run_fresh
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS

_TITLES = {
    "shared-prefix": "shared prefix",
    "packing": "packing",
    "chunked-loss": "chunked loss",
    "labels-only": "labels-only logits",
    "fused-adapters": "fused adapter layers",
    "lean-layers": "lean layers",
    "tiled-attention": "tiled attention",
    "kept-shapes": "limits on kept shapes",
    "collector-off": "collector off",
}
_KEPT_SHAPES, _COLLECTOR = "kept-shapes", "collector-off"
_UNLIMITED = {"LRU_CACHE_CAPACITY": "1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}
"""The defaults of PyTorch and oneDNN."""
_STEPS = {"banking77": 4, "long": 1, "demo": 2}
"""Steps of each measurement: 5 to 7 seconds on two cores."""
_START = "start and end"
_IMPORTS = "from tasks.runtime.libraries import import_libraries; import_libraries()"
_PLAIN_IMPORTS = """
from importlib import import_module
from tasks.runtime.libraries import MODULES
for name in MODULES: import_module(name)
"""
_WORTH = 0.03
_CONFIDENCE = 0.9


class Gain(Message):
    """The relative gain of a technique: median and confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the gain in percent."""
        return f"{self.median:+.1%} ({self.low:+.1%} to {self.high:+.1%})"


@dataclass(frozen=True)
class _Trials:
    """Measures pairs: with all techniques on the worker `on`, without one on `off`."""

    on: Worker
    off: Worker
    num_steps: int

    def pair(self, number: int, without: str | None) -> Pair:
        wanted = [(self.on, None), (self.off, without)]
        if number % 2:
            on, off = (self._trial(worker, number, technique) for worker, technique in wanted)
        else:
            off, on = (self._trial(worker, number, technique) for worker, technique in wanted[::-1])
        return Pair(on=on, off=off)

    def _trial(self, worker: Worker, number: int, without: str | None) -> Trialed:
        first = number * self.num_steps
        worker.send(Trial(without=without, first_batch=first, num_steps=self.num_steps))
        return worker.receive(Trialed)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--without", "chosen", multiple=True, type=click.Choice(list(_TITLES)))
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, workloads: tuple[str, ...], chosen: tuple[str, ...], pairs: int) -> None:
    """Measure every technique on every workload; --steps is per measurement."""
    found: list[Ablation] = []
    lines: list[str] = []
    for name in workloads or WORKLOADS:
        if why := setting.why_not(name):
            lines.append(f"Skipped {name}: {why}.\n")
            continue
        found += _workload(setting, name, chosen or tuple(_TITLES), pairs)
    if _COLLECTOR in (chosen or _TITLES):
        found.append(_start_and_end(setting, pairs))
    text = "[" + ",\n".join(one.model_dump_json(indent=2) for one in found) + "]"
    (setting.folder / "ablation.json").write_text(text)
    setting.publish("ablation", [*lines, *_table(found), _not_worth_it(found)])


def gain(ratios: list[float]) -> Gain:
    """Return the ratios' median gain and its bootstrap interval."""
    import numpy as np
    from scipy.stats import bootstrap

    gains = np.array(ratios) - 1
    low = high = median(gains)
    if len(set(ratios)) > 1:  # the bootstrap of a constant has no interval
        interval = bootstrap(
            (gains,), np.median, confidence_level=_CONFIDENCE, method="percentile", rng=0
        ).confidence_interval
        low, high = interval
    return Gain(median=float(median(gains)), low=float(low), high=float(high))


def speed(it: Ablation) -> Gain:
    """Return the gain in rows per second with the technique."""
    return gain([pair.on.rows_per_second / pair.off.rows_per_second for pair in it.pairs])


def memory(it: Ablation) -> Gain:
    """Return how much more peak memory the workload needs without the technique."""
    return gain([pair.off.peak_memory_mb / pair.on.peak_memory_mb for pair in it.pairs])


def worthless(found: list[Ablation]) -> list[str]:
    """Return the techniques whose gain has an upper end below 3 % on all workloads."""

    def is_worth_it(it: Ablation) -> bool:
        return max(speed(it).high, memory(it).high) >= _WORTH

    names = dict.fromkeys(one.without for one in found)
    worth = {one.without for one in found if one.pairs and is_worth_it(one)}
    return [name for name in names if name not in worth]


def _workload(
    setting: Setting, name: str, chosen: tuple[str, ...], pairs: int
) -> Iterator[Ablation]:
    _, job = replace(setting, num_steps=None).prepare(name, 1)
    num_steps = setting.num_steps or _STEPS[name]
    if in_process := [one for one in chosen if one != _KEPT_SHAPES]:
        with _worker(setting, job, "techniques", {}) as worker:
            in_use = worker.receive(Ready).in_use
            trials = _Trials(worker, worker, num_steps)
            for technique in in_process:
                measured = _pairs(trials, name, technique, pairs) if technique in in_use else []
                yield Ablation(workload=name, without=technique, pairs=measured)
    if _KEPT_SHAPES in chosen:
        with ExitStack() as stack:
            limited = stack.enter_context(_worker(setting, job, "limited", {}))
            unlimited = stack.enter_context(_worker(setting, job, "unlimited", _UNLIMITED))
            for worker in (limited, unlimited):
                worker.receive(Ready)
            trials = _Trials(limited, unlimited, num_steps)
            measured = _pairs(trials, name, _KEPT_SHAPES, pairs)
            yield Ablation(workload=name, without=_KEPT_SHAPES, pairs=measured)


def _worker(setting: Setting, job: Job, name: str, extra: Mapping[str, str]) -> Worker:
    folder = job.folder / name
    folder.mkdir(parents=True)
    file = folder / "job.json"
    file.write_text(job.model_copy(update={"folder": folder}).model_dump_json(indent=2))
    log = folder / "output.log"
    return Worker("harness.measured_steps", file, log, {**setting.variables, **extra})


def _pairs(trials: _Trials, workload: str, technique: str, count: int) -> list[Pair]:
    """Measure pairs, after one to warm up."""
    click.echo(f"{workload}, without {_TITLES[technique]} ...", err=True)
    without = None if technique == _KEPT_SHAPES else technique
    return [trials.pair(number, without) for number in range(count + 1)][1:]


def _start_and_end(setting: Setting, pairs: int) -> Ablation:
    """Measure a process that imports the libraries and exits; a row is one such process."""
    click.echo(f"{_START}, without {_TITLES[_COLLECTOR]} ...", err=True)

    def run(code: str) -> Trialed:
        usage = run_fresh([sys.executable, "-c", code], log, {**os.environ, **setting.variables})
        return Trialed(
            seconds=usage.ended - usage.began,
            num_rows=1,
            peak_memory_mb=usage.peak_memory_mb,
            losses=[],
        )

    log = setting.folder / "start.log"
    measured = [Pair(on=run(_IMPORTS), off=run(_PLAIN_IMPORTS)) for _ in range(pairs + 1)][1:]
    return Ablation(workload=_START, without=_COLLECTOR, pairs=measured)


def _table(found: list[Ablation]) -> Iterator[str]:
    workloads = list(dict.fromkeys(one.workload for one in found))
    by_place = {(one.without, one.workload): one for one in found}

    def cells(technique: str) -> Iterator[str]:
        for workload in workloads:
            it = by_place.get((technique, workload))
            yield str(speed(it)) if it and it.pairs else "-"
            yield str(memory(it)) if it and it.pairs else "-"

    heads = (f"{one}, {what}" for one in workloads for what in ("rows/s", "memory"))
    techniques = dict.fromkeys(one.without for one in found)
    yield "Gain of each technique: rows/s with it to without, peak memory without it to with.\n"
    yield from table(("technique", *heads), [(_TITLES[name], *cells(name)) for name in techniques])


def _not_worth_it(found: list[Ablation]) -> str:
    names = ", ".join(_TITLES[name] for name in worthless(found)) or "none"
    return f"Upper end of the interval under {_WORTH:.0%} everywhere: {names}.\n"


if __name__ == "__main__":
    try:
        main()
    except ProcessFailed as error:
        raise SystemExit(str(error)) from error
