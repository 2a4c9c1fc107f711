"""adapterflow's engine: the pipeline's steps without Prefect and MLflow."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.watching import now, observed
from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    InferenceSettings,
    LearningObjective,
    LoraSettings,
    OutputSettings,
    TrainingSettings,
)
from tasks.engine.training import TrainingProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.data.tokens import PreparedData
    from tasks.records import InjectedRecord


def run(job: Job) -> Outcome:
    """Train as `adapterflow train` does, save and verify the adapter, and sample answers."""
    settings = sections(job)
    model, injected, data = begun(job)
    outcome = Outcome(training_began=now(), num_tokens=data.record.train.num_tokens)
    note = noting(outcome)
    with observed(model, job, outcome):
        trained = engine.train_adapter(
            model,
            injected,
            data.record,
            TrainingSettings.model_validate(settings["training"]),
            job.folder / "checkpoints",
            note,
        )
    output = OutputSettings(license="unknown")
    # The only reference to the model is passed on, so that verification can free it first.
    holder = [model]
    del model
    saved = engine.save_adapter(holder.pop(), trained, data.record, output, job.adapter)
    outcome.adapter = saved.folder
    outcome.adapter_done = time.time()
    outcome.warnings = [f"{trained.batching} batches", *trained.warnings]
    inference = InferenceSettings.model_validate(settings["inference"])
    if inference.sample_rows:
        fresh, _ = engine.load_base(injected.lora.base.settings)
        engine.load_adapter(fresh, saved, data.record, inference)
    return outcome


def begun(job: Job) -> "tuple[PreTrainedModel, InjectedRecord, PreparedData]":
    """Take what is before the training: the rows, and steps 1 to 3."""
    settings = sections(job)
    base_settings = BaseModelSettings.model_validate(settings["base_model"])
    data = engine.prepare_data(
        DataSettings.model_validate(settings["data"]),
        base_settings,
        job.seed,
        job.folder / "tokens",
        LearningObjective(job.objective),
    )
    model, base = engine.load_base(base_settings)
    lora = engine.configure_lora(LoraSettings.model_validate(settings["lora"]), base, job.seed)
    file = job.folder / "initial" / "default.safetensors"
    return model, engine.inject_adapter(model, lora, file), data


def noting(outcome: Outcome) -> Callable[[TrainingProgress], None]:
    """Return what writes each step's end and loss into an outcome."""

    def note(progress: TrainingProgress) -> None:
        if "loss" in progress.metrics:
            outcome.losses.append(progress.metrics["loss"])
        elif not progress.metrics:
            outcome.step_ends.append(now())

    return note


def sections(job: Job) -> dict[str, dict[str, object]]:
    """Return the job as sections of a configuration; its options override single settings."""
    known: dict[str, dict[str, object]] = {
        "base_model": {"source": str(job.base), "dtype": job.dtype},
        "data": {"train": str(job.train), "eval_fraction": 0, "max_length": job.max_length},
        "lora": {"r": job.r, "lora_alpha": job.lora_alpha, "target_modules": "all-linear"},
        "training": {
            "batch_size": job.batch_size,
            "max_steps": job.num_steps,
            "learning_rate": job.learning_rate,
            "warmup_ratio": job.warmup_ratio,
        },
        "inference": {"sample_rows": 0},
    }
    if job.objective != LearningObjective.SFT:
        known["training"]["objective"] = job.objective
    return {name: {**values, **job.options.get(name, {})} for name, values in known.items()}
