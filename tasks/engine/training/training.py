"""The engine's side of step 4: train the adapter, and verify that it and nothing else changed."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
)
from transformers.trainer_callback import TrainerState

from tasks.config import TrainingSettings
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
from tasks.engine.batching import row_order
from tasks.engine.data.splits import LazySequence
from tasks.engine.data.tokens import (
    PreparedData,
    TokenizedRow,
    TokenizedSplit,
    conversation_starts,
    row_lengths,
)
from tasks.engine.failures import is_out_of_memory
from tasks.engine.objectives import objective_of
from tasks.engine.training.arguments import training_arguments
from tasks.engine.training.callbacks import OnEvaluating, OnTraining, Pace, Watch
from tasks.engine.training.checkpoints import Checkpoints
from tasks.engine.training.group import ALONE, Group
from tasks.engine.training.plan import planned, with_less_memory
from tasks.engine.training.rows import Rows
from tasks.engine.training.trainer import AdapterTrainer
from tasks.errors import UserError, VerificationError
from tasks.records import FileRecord, InjectedRecord, LossPoint, TrainedRecord, TrainingPlan

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
        should_stop: whether to save a checkpoint and stop; asked after every step, and after every
            batch of held-out rows.
        group: the processes that train together, each of which calls this function with the same
            model; the first one writes to `folder`.

    Returns:
        The record of the trained weights, with losses in nats per label (a token of a language
        model, a word of a tagged row, a classified row).

    Raises:
        UserError: the optimizer needs a GPU and there is none, or `training.batching` asks for what
            the task, model or rows do not allow.
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
    watch = Watch(on_progress, on_evaluating)
    inputs = _Inputs(model, injected, data, settings, Checkpoints(folder), group, should_stop)
    state, plan, seconds = _trained(inputs, watch)
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
        warnings=(*plan.warnings, *_not_improved(curve, best, settings)),
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


class _Inputs(NamedTuple):
    """What a training is a function of, and where it runs."""

    model: "PreTrainedModel"
    injected: InjectedRecord
    data: PreparedData
    settings: TrainingSettings
    checkpoints: Checkpoints
    group: Group
    should_stop: Callable[[], bool]


def _trained(inputs: _Inputs, watch: Watch) -> tuple[TrainerState, TrainingPlan, float]:
    """Train in micro-batches that fit into memory; return Trainer's state, the plan, and seconds.

    The seconds are those of all attempts that led to the result.
    """
    model, injected, data, settings, checkpoints, group, _ = inputs
    plan = group.from_first(
        lambda: planned(checkpoints, model, injected, data, settings, group.size)
    )
    # The threads decide in which order a sum is rounded, so a resumed run must have as many.
    torch.set_num_threads(plan.num_threads)
    while True:
        trainer = _build_trainer(inputs, plan)
        trainer.add_callback(watch)
        try:
            trainer.train_or_resume()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            plan = with_less_memory(plan, data, settings, error)
        else:
            return trainer.state, plan, trainer.seconds_training()
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


def _build_trainer(inputs: _Inputs, plan: TrainingPlan) -> AdapterTrainer:
    model, injected, data, settings, checkpoints, group, should_stop = inputs
    task = objective_of(injected.lora.base.settings.task)
    collate = task.make_batches(plan, data.renderer.tokenizer.pad_token_id or 0)

    def shared(rows: Sequence[TokenizedRow]) -> Rows:
        return Rows(rows, collate, plan.batching, group)

    rows = data.train.rows
    held_out = shared(data.eval.rows) if data.eval else None
    trainer = AdapterTrainer(
        adapter_name=injected.lora.adapter_name,
        settings=settings,
        task=task,
        rows=shared(rows),
        order=row_order(
            row_lengths(rows),
            conversation_starts(rows),
            plan.batching,
            injected.lora.seed,
            batch_size=settings.batch_size,
            accumulation_steps=settings.gradient_accumulation_steps,
        ),
        checkpoints=checkpoints,
        num_checkpoints=settings.save_total_limit,
        plan=plan,
        initial=load_weights(injected.initial_weights.path),
        eval_sources={n: shared(one) for n, one in _by_source(data.eval)} if data.eval else {},
        group=group,
        should_stop=should_stop,
        model=model,
        args=training_arguments(
            settings, injected, checkpoints.folder, evaluates=held_out is not None
        ),
        eval_dataset=held_out,
    )
    # `Watch` replaces them: progress is shown in the terminal's own way and logged to MLflow.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.early_stopping_patience and held_out:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    trainer.add_callback(Pace(60 * settings.checkpoint_minutes, group.any))
    return trainer


def _by_source(split: TokenizedSplit) -> Iterator[tuple[str, Sequence[TokenizedRow]]]:
    """Yield the name and the rows of each source that has any."""
    for number, part in enumerate(split.record.by_source):
        places = np.flatnonzero(split.sources == number)
        if len(places):
            yield part.name, _at(split.rows, places)


def _at(rows: Sequence[TokenizedRow], places: "np.ndarray") -> LazySequence[TokenizedRow]:
    return LazySequence(len(places), lambda at: rows[int(places[at])])


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
