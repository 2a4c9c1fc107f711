"""Ours: the pipeline's own steps through the engine, without Prefect and MLflow."""

import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.watching import observed
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    InferenceSettings,
    LoraSettings,
    TrainingSettings,
)
from tasks.engine.adapters.activation import adapters_disabled
from tasks.engine.adapters.injection import inject, probe_logits
from tasks.engine.adapters.loading import load_adapter
from tasks.engine.adapters.lora import describe_lora, resolve_lora
from tasks.engine.adapters.saving import adapter_files, save_adapter
from tasks.engine.base.base_models import describe_base, load_base, load_skeleton
from tasks.engine.base.memory import give_back
from tasks.engine.base.sources import find_base
from tasks.engine.data.examples import read_examples
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.objectives.generation import answer
from tasks.engine.preparation import prepare_data
from tasks.engine.training.callbacks import TrainingProgress
from tasks.engine.training.training import train
from tasks.records import BaseModelRecord


def run(job: Job) -> Outcome:
    """Train as `adapterflow train` does, save the adapter with its proof, and let it answer."""
    settings = sections(job)
    data_settings = DataSettings.model_validate(settings["data"])
    source = find_base(BaseModelSettings.model_validate(settings["base_model"]))
    sets = read_examples(data_settings, job.seed)
    data = prepare_data(sets, data_settings, job.seed, source, job.folder / "tokens")
    model = load_base(source)
    lora_settings = LoraSettings.model_validate(settings["lora"])
    base = describe_base(source, model)
    skeleton = load_skeleton(source)
    config = resolve_lora(lora_settings, skeleton, source.settings.task)
    lora = describe_lora(config, skeleton, base, settings=lora_settings, seed=job.seed)
    injected = inject(model, lora, job.folder / "initial" / "default.safetensors")
    outcome = Outcome(training_began=time.time(), num_tokens=data.record.train.num_tokens)

    def note(progress: TrainingProgress) -> None:
        if "loss" in progress.metrics:
            outcome.losses.append(progress.metrics["loss"])
        elif not progress.metrics:
            outcome.step_ends.append(time.time())

    with observed(model, job, outcome):
        trained = train(
            model,
            injected,
            data,
            settings=TrainingSettings.model_validate(settings["training"]),
            folder=job.folder / "checkpoints",
            on_progress=note,
        )
    files = adapter_files(model, trained, data.record.template, card="")
    live_logits = probe_logits(model)
    del model
    give_back()
    outcome.adapter = save_adapter(files, job.adapter, live_logits, None).folder
    outcome.adapter_done = time.time()
    outcome.remarks = [f"{trained.batching} batches", *trained.remarks]
    _let_answer(
        base, data, outcome.adapter, InferenceSettings.model_validate(settings["inference"])
    )
    return outcome


def _let_answer(
    base: BaseModelRecord, data: PreparedData, adapter: Path, settings: InferenceSettings
) -> None:
    """Answer held-out rows by the base and by the adapter, as step 6 does."""
    if data.eval is None or not settings.sample_rows:
        return
    model = load_base(base)
    load_adapter(model, adapter)
    prompts = [data.renderer.prompt(one) for one in data.eval.examples[: settings.sample_rows]]
    for adapters in (nullcontext(), adapters_disabled(model)):
        with adapters:
            answer(
                model,
                data.renderer.tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
            )


def sections(job: Job) -> dict[str, dict[str, object]]:
    """Give the job as the sections of a configuration; options override single settings."""
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
    return {name: {**values, **job.options.get(name, {})} for name, values in known.items()}
