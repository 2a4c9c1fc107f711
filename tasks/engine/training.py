"""Step 4's work: the training run, from its record alone, and the proof that it was one."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from tasks.config import TrainingSettings
from tasks.engine import adapter_state
from tasks.engine.batch_choice import choose_batches
from tasks.engine.batching import as_items
from tasks.engine.prepared_data import PreparedData
from tasks.engine.trainer import AdapterTrainer, Rows
from tasks.errors import VerificationError
from tasks.records import FileRecord, InjectedRecord, LossPoint, TrainedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training stands, for whoever shows or records it."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    """What Trainer logged at this step; empty where it logged nothing."""


OnTraining = Callable[[TrainingProgress], None]


def train(  # noqa: PLR0913 - a training run has that many parts
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    *,
    settings: TrainingSettings,
    folder: Path,
    on_progress: OnTraining,
) -> TrainedRecord:
    """Train the model's active adapter; go on from the last checkpoint in `folder`, if any.

    Args:
        model: a base with the fresh adapter, as `injected` says.
        injected: the state that the model is in.
        data: tokenised rows.
        settings: the optimisation.
        folder: for checkpoints and the trained weights.
        on_progress: told of every step and of everything logged.

    Raises:
        VerificationError: the adapter did not change, the base did, no token was trained on, or a
            loss was not finite.
    """
    if not data.record.train.num_trained_tokens:
        raise VerificationError("no token of the training rows is trained on")
    trainer, batching, remarks = _build_trainer(model, injected, data, settings, folder)
    trainer.add_callback(_Watcher(on_progress))
    started = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    seconds = time.perf_counter() - started
    change = _verify(model, injected, trainer.state)
    weights = adapter_state.read_adapter(model, injected.lora.adapter_name)
    file = adapter_state.save_weights(weights, folder / "trained" / adapter_state.WEIGHTS_FILE)
    best = trainer.state.best_global_step if settings.keep_best and data.eval else None
    curve = loss_curve(trainer.state)
    passes = trainer.state.epoch or 0.0
    return TrainedRecord(
        injected=injected,
        weights=FileRecord.of(file),
        num_steps=trainer.state.global_step,
        best_step=best,
        train_loss=_mean_of_last(curve) or output.training_loss,
        eval_loss=_eval_loss(curve, best),
        num_trained_tokens=round(data.record.train.num_trained_tokens * passes),
        num_tokens=round(data.record.train.num_tokens * passes),
        seconds_training=seconds,
        adapter_change=change,
        batching=batching,
        loss_curve=curve,
        remarks=remarks,
    )


def retrain(model: "PreTrainedModel", record: TrainedRecord) -> None:
    """Bring a freshly injected model to the trained state that a record describes."""
    weights = adapter_state.load_weights(record.weights.path)
    adapter_state.write_adapter(model, record.injected.lora.adapter_name, weights)


def last_complete_checkpoint(folder: Path) -> str | None:
    """Give the newest checkpoint that was written to its end, as Trainer's state file shows.

    A checkpoint that a crash cut short is removed, so that it isn't taken for a whole one.
    """
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        if _is_complete(Path(newest)):
            return str(newest)
        shutil.rmtree(newest)
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def loss_curve(state: TrainerState) -> tuple[LossPoint, ...]:
    """Give all logged losses by step, in nats a token."""
    return tuple(
        LossPoint(
            step=entry["step"],
            train_loss=entry.get("loss"),
            eval_loss=entry.get("eval_loss"),
        )
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    )


def _build_trainer(
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    settings: TrainingSettings,
    folder: Path,
) -> tuple[AdapterTrainer, str, tuple[str, ...]]:
    batches, remarks = choose_batches(settings, data, model)
    held_out = Rows(as_items(data.eval.rows)) if data.eval else None
    trainer = AdapterTrainer(
        adapter_name=injected.lora.adapter_name,
        model=model,
        args=_arguments(settings, injected, folder, batches.name, held_out is not None),
        train_dataset=Rows(as_items(data.train.rows)),
        eval_dataset=held_out,
        data_collator=batches,
    )
    # Ours reports where the user looks: a bar on a terminal, lines elsewhere, MLflow.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.early_stopping_patience and held_out:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer, batches.name, remarks


def _arguments(
    settings: TrainingSettings,
    injected: InjectedRecord,
    folder: Path,
    batching: str,
    evaluates: bool,  # noqa: FBT001 - private, and called once
) -> TrainingArguments:
    base = injected.lora.base
    every = "epoch" if settings.eval_steps is None else "steps"
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler.value,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        eval_strategy=every if evaluates else "no",
        save_strategy=every,
        eval_steps=settings.eval_steps,
        save_steps=settings.eval_steps or 500,
        save_total_limit=settings.save_total_limit,
        load_best_model_at_end=settings.keep_best and evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        train_sampling_strategy="group_by_length" if batching == "padded" else "random",
        seed=injected.lora.seed,
        data_seed=injected.lora.seed,
        # float32 adapters on a half-precision base: products in half precision, sums in float32.
        bf16=base.dtype == "bfloat16",
        fp16=base.dtype == "float16" and on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


class _Watcher(TrainerCallback):
    """Hands progress on, and stops at the first loss that is no number."""

    def __init__(self, on_progress: OnTraining) -> None:
        self._on_progress = on_progress

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Report the step."""
        self._on_progress(TrainingProgress(state.global_step, state.max_steps, {}))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Report the metrics.

        Raises:
            VerificationError: a loss is infinite or not a number.
        """
        metrics = {name: value for name, value in (logs or {}).items() if name != "epoch"}
        for name, value in metrics.items():
            if "loss" in name and not math.isfinite(value):
                raise VerificationError(
                    f"{name} is {value} at step {state.global_step}; lower "
                    f"training.learning_rate ({args.learning_rate:g}) or use another dtype"
                )
        self._on_progress(TrainingProgress(state.global_step, state.max_steps, metrics))


def _verify(model: "PreTrainedModel", injected: InjectedRecord, state: TrainerState) -> float:
    if not state.global_step:
        raise VerificationError("training ended without a step")
    initial = adapter_state.load_weights(injected.initial_weights.path)
    trained = adapter_state.read_adapter(model, injected.lora.adapter_name)
    change = adapter_state.change(initial, trained)
    if not change:
        raise VerificationError("training left every adapter weight as it was")
    if not math.isfinite(change):
        raise VerificationError("training left adapter weights that are no numbers")
    if adapter_state.base_checksum(model) != injected.base_checksum:
        raise VerificationError("training changed weights of the base, which must stay frozen")
    return change


def _mean_of_last(curve: tuple[LossPoint, ...], count: int = 10) -> float | None:
    losses = [point.train_loss for point in curve if point.train_loss is not None][-count:]
    return sum(losses) / len(losses) if losses else None


def _eval_loss(curve: tuple[LossPoint, ...], best: int | None) -> float | None:
    losses = {p.step: p.eval_loss for p in curve if p.eval_loss is not None}
    if not losses:
        return None
    return losses.get(best, losses[max(losses)]) if best else losses[max(losses)]
