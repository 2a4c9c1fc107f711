"""The engine's side of step 4: train the adapter, and verify that it and nothing else changed."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
)
from transformers.trainer_callback import TrainerState

from tasks.config import LearningObjective, TrainingSettings
from tasks.config.training import Optimizer
from tasks.engine.adapters import (
    WEIGHTS_FILE,
    base_checksum,
    load_weights,
    read_adapter,
    save_weights,
    weight_change,
    weights_checksum,
    write_adapter,
)
from tasks.engine.base import release_memory
from tasks.engine.data.tokens import PreparedData
from tasks.engine.excerpts import listed
from tasks.engine.failures import is_out_of_memory
from tasks.engine.training.arguments import training_arguments
from tasks.engine.training.callbacks import OnEvaluating, OnTraining, Pace, Watch
from tasks.engine.training.checkpoints import Checkpoints
from tasks.engine.training.dropout import without_base_dropout
from tasks.engine.training.group import ALONE, Group
from tasks.engine.training.inputs import Inputs, OnReference
from tasks.engine.training.item_sets import ItemSets, item_sets
from tasks.engine.training.plan import planned, with_less_memory
from tasks.engine.training.reference import KeptReference
from tasks.engine.training.trainer import AdapterTrainer
from tasks.errors import UserError, VerificationError
from tasks.records import (
    FileRecord,
    InjectedRecord,
    LearnedPreferences,
    LossPoint,
    TrainedRecord,
    TrainingPlan,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_EVAL_PREFIX = "eval_"
_SOURCE_PREFIX = "eval_loss/"


def train(  # noqa: PLR0913 - a training run has that many parts
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    *,
    settings: TrainingSettings,
    folder: Path,
    on_progress: OnTraining,
    on_evaluating: OnEvaluating | None = None,
    on_reference: OnReference | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
) -> TrainedRecord:
    """Train the model's active adapter, resuming from the newest checkpoint in `folder`, if any.

    Args:
        model: the base with the freshly injected adapter that `injected` describes.
        injected: the state of the model.
        data: the tokenized rows.
        settings: the training settings.
        folder: for checkpoints and the trained weights.
        on_progress: called after every step and every log.
        on_evaluating: called after every batch of held-out rows.
        on_reference: called while the reference of preferences is computed, with how much is done.
        should_stop: whether to save a checkpoint and stop; asked after every step, and after every
            batch of held-out rows or of the reference.
        group: the processes that train together, each of which calls this function with the same
            model; the first one writes to `folder`.

    Returns:
        The record of the trained weights, with losses in nats per label (a token of a language
        model, a word of a tagged row, a classified row).

    Raises:
        UserError: the optimizer needs a GPU and there is none, `training.batching` asks for what
            the task, model or rows do not allow, or the data was prepared for another objective.
        AdapterflowError: out of memory even with the smallest micro-batches.
        UnwritableError: the disk is full, or `folder` is not writable.
        StoppedError: it was asked to stop.
        VerificationError: no token is trained on, a loss is not finite, the adapter did not change,
            or the base did.
    """
    if settings.optim is Optimizer.PAGED_ADAMW_8BIT and not torch.cuda.is_available():
        raise UserError("training.optim is paged_adamw_8bit, which needs a GPU; use adamw_torch")
    if not data.record.train.num_trained_tokens:
        raise VerificationError("no token of the training rows is trained on; see data.loss_on")
    if data.record.objective is not settings.objective:
        raise UserError(
            f"the data was prepared for training.objective {data.record.objective}, but objective "
            f"is {settings.objective}; prepare it for that one"
        )
    watch, checkpoints = Watch(on_progress, on_evaluating), Checkpoints(folder)
    inputs = Inputs(model, injected, data, settings, checkpoints, group, should_stop, on_reference)
    state, plan, seconds, reference = _trained(inputs, watch)
    # Before the trained weights are written: what fails must leave no file that looks like them.
    change = _verify(model, injected, state, group)
    weights = read_adapter(model, injected.lora.adapter_name)
    file = group.from_first(lambda: save_weights(weights, folder / "trained" / WEIGHTS_FILE))
    best = state.best_global_step if settings.load_best_model_at_end and data.eval else None
    curve = loss_curve(state)
    epochs = state.epoch or 0.0
    return TrainedRecord(
        injected=injected,
        weights=FileRecord.of(file),
        num_steps=state.global_step,
        best_step=best,
        train_loss=_mean_of_last(curve),
        eval_loss=_eval_loss(curve, best),
        num_trained_tokens=round(data.record.train.num_trained_tokens * epochs),
        num_tokens=round(data.record.train.num_tokens * epochs),
        seconds_training=seconds,
        adapter_change=change,
        batching=plan.batching,
        loss_curve=curve,
        eval_metrics=_eval_metrics(state, best),
        eval_losses=_eval_losses(state, best),
        preferences=_learned(settings, reference),
        warnings=(
            *plan.warnings,
            *_not_improved(curve, best, settings),
            *_not_trained(injected, weights),
        ),
    )


def retrain(model: "PreTrainedModel", record: TrainedRecord) -> None:
    """Load the trained weights that the record names into a freshly injected model."""
    weights = load_weights(record.weights.path)
    write_adapter(model, record.injected.lora.adapter_name, weights)


def loss_curve(state: TrainerState) -> tuple[LossPoint, ...]:
    """Return all logged losses by step, in nats per label (see `train`)."""
    return tuple(
        LossPoint(
            step=entry["step"],
            train_loss=entry.get("loss"),
            eval_loss=entry.get("eval_loss"),
        )
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    )


class SmallerBatchesError(RuntimeError):
    """Memory ran out in one of several processes, and the plan was changed accordingly."""


def _trained(
    inputs: Inputs, watch: Watch
) -> tuple[TrainerState, TrainingPlan, float, KeptReference | None]:
    """Train in micro-batches that fit into memory.

    Return Trainer's state, the plan, the seconds of all attempts that led to the result, and the
    reference of preferences.
    """
    model, injected, data, settings, checkpoints, group, _, _ = inputs
    plan = planned(checkpoints, model, injected, data, settings, group)
    # The threads decide in which order a sum is rounded, so a resumed run must have as many.
    torch.set_num_threads(plan.num_threads)
    while True:
        trainer = None
        try:
            items = item_sets(inputs, plan)
            trainer = _build_trainer(inputs, plan, items)
            trainer.add_callback(watch)
            is_sft = settings.objective is LearningObjective.SFT
            with nullcontext() if is_sft else without_base_dropout(model):
                trainer.train_or_resume()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            plan = with_less_memory(plan, data, settings, error)
        else:
            return trainer.state, plan, trainer.seconds_training(), items.reference
        del trainer  # with the optimizer's state, for which the next one needs the memory
        checkpoints.keep_plan(plan)
        if group.size > 1:  # the others are in the midst of a step
            raise SmallerBatchesError("out of memory; the next attempt has smaller micro-batches")
        _rewind(model, injected)


def _rewind(model: "PreTrainedModel", injected: InjectedRecord) -> None:
    """Free the memory of a failed step, and reset the adapter to its initial weights.

    A trainer built afterwards overwrites them if there is a checkpoint to resume from.
    """
    model.zero_grad(set_to_none=True)
    weights = load_weights(injected.initial_weights.path)
    write_adapter(model, injected.lora.adapter_name, weights)
    release_memory()


def _build_trainer(inputs: Inputs, plan: TrainingPlan, items: ItemSets) -> AdapterTrainer:
    model, injected, _, settings, checkpoints, group, should_stop, _ = inputs
    trainer = AdapterTrainer(
        adapter_name=injected.lora.adapter_name,
        settings=settings,
        task=inputs.task,
        items=items.train,
        order=items.order,
        checkpoints=checkpoints,
        num_checkpoints=settings.save_total_limit,
        plan=plan,
        initial=load_weights(injected.initial_weights.path),
        eval_sources=items.eval_sources,
        group=group,
        should_stop=should_stop,
        model=model,
        args=training_arguments(
            settings, injected, checkpoints.folder, evaluates=items.eval is not None
        ),
        eval_dataset=items.eval,
    )
    # `Watch` replaces them: progress is shown in the terminal's own way and logged to MLflow.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.early_stopping_patience and items.eval:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    trainer.add_callback(Pace(60 * settings.checkpoint_minutes, group.any))
    return trainer


def _learned(
    settings: TrainingSettings, reference: KeptReference | None
) -> LearnedPreferences | None:
    """Return how preferences were learned, if they were."""
    if settings.objective is LearningObjective.SFT:
        return None
    learned = LearnedPreferences(
        objective=settings.objective, settings=settings.preference_settings
    )
    if reference is None:
        return learned
    return learned.model_copy(
        update={
            "reference_sha256": reference.file.sha256,
            "num_reference_pairs": reference.num_pairs,
            "seconds_reference": reference.seconds,
        }
    )


def _verify(
    model: "PreTrainedModel", injected: InjectedRecord, state: TrainerState, group: Group
) -> float:
    if not state.global_step:
        raise VerificationError("training took no optimizer step")
    initial = load_weights(injected.initial_weights.path)
    trained = read_adapter(model, injected.lora.adapter_name)
    change = weight_change(initial, trained)
    if not change:
        raise VerificationError(
            "training changed no adapter weight: no step had a learning rate and gradients large "
            "enough to change a float32 weight; raise training.learning_rate or the number of steps"
        )
    if not math.isfinite(change):
        raise VerificationError("training left adapter weights that are not finite")
    if base_checksum(model) != injected.base_checksum:
        raise VerificationError("training changed weights of the base model, which must be frozen")
    if len(set(group.gather(weights_checksum(trained)))) > 1:
        raise VerificationError("the training's processes ended with different adapters")
    return change


def _not_trained(injected: InjectedRecord, trained: "dict[str, torch.Tensor]") -> list[str]:
    """Return a warning if the weights of adapted layers are still the initial ones.

    No gradient reaches a layer whose output the model does not use: transformers' Mamba reads the
    weight of `dt_proj` only, and rows of text pass by the vision tower of a model that has one.
    """
    initial = load_weights(injected.initial_weights.path)
    changed = [key for key, value in trained.items() if not torch.equal(value, initial[key])]
    left = [
        layer
        for layer in injected.lora.adapted
        if any(f"{layer}." in key for key in trained)
        and not any(f"{layer}." in key for key in changed)
    ]
    if not left:
        return []
    names = listed(dict.fromkeys(layer.rpartition(".")[2] for layer in left))
    warning = (
        f"training changed nothing in {len(left)} of {len(injected.lora.adapted)} adapted layers, "
        f"as no gradient reaches them: {names}; leave them out by lora.exclude_modules"
    )
    return [warning]


def _mean_of_last(curve: tuple[LossPoint, ...], count: int = 10) -> float:
    """Return the mean of the last logged training losses: a single one is noisy."""
    losses = [point.train_loss for point in curve if point.train_loss is not None][-count:]
    return sum(losses) / len(losses)


def _eval_loss(curve: tuple[LossPoint, ...], best: int | None) -> float | None:
    """Return the held-out loss at the best step if there is one, else the last; None without."""
    losses = {p.step: p.eval_loss for p in curve if p.eval_loss is not None}
    if not losses:
        return None
    return losses.get(best, losses[max(losses)]) if best else losses[max(losses)]


def _not_improved(
    curve: tuple[LossPoint, ...], best: int | None, settings: TrainingSettings
) -> list[str]:
    """Return a warning if the held-out loss never fell below that of the untrained adapter."""
    losses = {p.step: p.eval_loss for p in curve if p.eval_loss is not None}
    if best is None:
        return []
    # A step before the best one with no higher loss: Trainer skipped it as untrained (see
    # `AdapterTrainer._determine_best_metric`), otherwise it would be the best.
    untrained = [loss for step, loss in losses.items() if step < best and loss <= losses[best]]
    if not untrained:
        return []
    warning = (
        f"the held-out loss never fell below {untrained[0]:.4f}, that of the untrained adapter "
        f"(best checkpoint: step {best} with {losses[best]:.4f}); lower "
        f"training.learning_rate ({settings.learning_rate:g}), or use training rows that are more "
        "like the held-out ones"
    )
    return [warning]


def _eval_metrics(state: TrainerState, best: int | None) -> dict[str, float]:
    """Return the evaluation's metrics other than the loss, at the best step or else the last."""
    return {
        name.removeprefix(_EVAL_PREFIX): value
        for name, value in _evaluation(state, best).items()
        if name.startswith(_EVAL_PREFIX) and not name.startswith("eval_loss")
    }


def _eval_losses(state: TrainerState, best: int | None) -> dict[str, float]:
    """Return the held-out loss of each source, at the best step or else the last."""
    return {
        name.removeprefix(_SOURCE_PREFIX): value
        for name, value in _evaluation(state, best).items()
        if name.startswith(_SOURCE_PREFIX)
    }


def _evaluation(state: TrainerState, best: int | None) -> dict[str, float]:
    """Return what was logged at the evaluation of the best step, or else the last."""
    logged = [entry for entry in state.log_history if "eval_loss" in entry]
    chosen = [entry for entry in logged if entry["step"] == best] or logged
    return chosen[-1] if chosen else {}
