"""HF Trainer for adapters that `add_adapter()` injected into the model's own modules.

Trainer 5.23 does not recognize such a model as a PEFT model: it would expect checkpoints of the
full model when it resumes and when it loads the best one. Here a checkpoint holds the adapter only.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, set_seed

from tasks.config import TrainingSettings
from tasks.engine.adapters import (
    WEIGHTS_FILE,
    load_weights,
    read_adapter,
    save_weights,
    weight_change,
    write_adapter,
)
from tasks.engine.batching import Batch, MicroBatch, RowOrder
from tasks.engine.data.tokens import IGNORED
from tasks.engine.eval_mode import eval_mode
from tasks.engine.kernels import training_kernels
from tasks.engine.objectives import Objective
from tasks.engine.training.callbacks import Beginning
from tasks.engine.training.checkpoints import Checkpoints, Kept, kept_in, step_of
from tasks.engine.training.evaluated import Evaluated, total
from tasks.engine.training.group import Group
from tasks.engine.training.items import Items
from tasks.engine.training.measures import Measures
from tasks.engine.training.noise import noisy_embeddings
from tasks.engine.training.optimizers import lora_optimizer
from tasks.errors import StoppedError
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_RANDOM_STATE = "rng_state.pth"
"""Trainer's file. Those of other processes than the first have their rank in the name."""


class AdapterTrainer(Trainer):
    """Trains the active adapter; the loss of a step is the mean over all of its trained tokens.

    Args:
        adapter_name: the active adapter.
        settings: the training settings.
        task: the objective.
        items: the training rows, or pairs of them.
        order: their order.
        checkpoints: where checkpoints are written to and resumed from.
        num_checkpoints: how many of them to keep.
        plan: how rows are batched and the loss computed.
        initial: the adapter's initial weights.
        eval_sources: the held-out items of each source, by its name.
        group: the processes that train together.
        should_stop: asked after each step, and after each batch of held-out rows.
        **arguments: those of Trainer itself.
    """

    # Trainer must not divide by the accumulation steps: `compute_loss` divides by the labels of
    # them all.
    loss_is_scaled_for_ga = True
    model: "PreTrainedModel"

    def __init__(  # noqa: PLR0913 - a training run has that many parts
        self,
        *,
        adapter_name: str,
        settings: TrainingSettings,
        task: Objective,
        items: Items,
        order: RowOrder,
        checkpoints: Checkpoints,
        num_checkpoints: int,
        plan: TrainingPlan,
        initial: dict[str, torch.Tensor],
        eval_sources: Mapping[str, Items],
        group: Group,
        should_stop: Callable[[], bool],
        **arguments: Any,  # noqa: ANN401 - Trainer's own
    ) -> None:
        # Trainer's data loader passes on indices: the items of a step are dealt out before they are
        # read.
        super().__init__(
            train_dataset=range(len(items)),
            data_collator=list,  # type: ignore[arg-type]
            **arguments,
        )
        self.adapter_name = adapter_name
        self._settings = settings
        self._task = task
        self._items = items
        self._order = order
        self._checkpoints = checkpoints
        self._num_checkpoints = num_checkpoints
        self._plan = plan
        self._initial = initial
        self._eval_sources = eval_sources
        self._group = group
        self._should_stop = should_stop
        self._unreduced_loss = torch.zeros((), device=self.args.device)
        self._has_moved = False
        self._measures = Measures(task.measures)
        self._resumed_from = Kept()
        self._saved_step = 0
        self._step_of_epoch = 0
        self._started = time.perf_counter()
        # Makes Trainer count the labels of a step, over all accumulation steps and devices.
        self.model_accepts_loss_kwargs = True
        self.add_callback(Beginning(self._begin))

    def train_or_resume(self) -> int:
        """Train, from the newest complete checkpoint if there is one; return the first step.

        Raises:
            StoppedError: it was asked to stop, and did so with a checkpoint.
        """
        newest = self._group.from_first(self._checkpoints.newest)
        self._resumed_from = kept_in(newest) if newest else Kept()
        self._draw_otherwise(newest)
        self._started = time.perf_counter()
        with training_kernels(self.model, self._plan, is_sharding=self._group.is_sharding):
            self.train(resume_from_checkpoint=str(newest) if newest else None)
        return self._initial_global_step

    def seconds_training(self) -> float:
        """Return the seconds of training so far, including those up to the resumed checkpoint."""
        return self._resumed_from.seconds_training + time.perf_counter() - self._started

    def _draw_otherwise(self, checkpoint: Path | None) -> None:
        """Seed the random numbers, such as dropout's, of other processes than the first.

        A checkpoint of as many processes has their states, which replace these.
        """
        if self._group.rank:
            seed = (self.args.seed, self._group.rank, step_of(checkpoint) if checkpoint else 0)
            set_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def _begin(self) -> None:
        """Restore what Trainer 5.23 resets when it resumes; make up for an evaluation."""
        # The next logged mean would lack the steps before the checkpoint.
        self._tr_loss += self._resumed_from.unlogged_loss
        self._globalstep_last_logged = self._resumed_from.last_logged_step
        kept = self._resumed_from
        self._measures.restore(kept.unlogged_measures, kept.num_unlogged_items)
        self._saved_step = self.state.global_step
        if self._resumed_from.is_evaluation_due:
            self._evaluate_late()

    def _evaluate_late(self) -> None:
        metrics = self.evaluate()
        self._determine_best_metric(metrics, None)
        self._resumed_from = self._resumed_from.model_copy(update={"is_evaluation_due": False})
        # What is random goes on from where it was; the evaluation draws nothing.
        newest = self._group.from_first(self._checkpoints.newest)
        self._load_rng_state(str(newest))
        self._save_checkpoint(self.model, None)

    def _run_epoch(self, **arguments: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        if self.state.global_step > self._initial_global_step:
            self._stop_if_asked()
        self._step_of_epoch = self.state.global_step
        # A run resumed from its last checkpoint is done, but Trainer would take one more step
        # before it checks.
        if self._is_done():
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)  # type: ignore[no-untyped-call]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the batches of an optimizer step, and the number of labels in all processes.

        Before that, stop if asked to: all that belongs to the step before is done.
        """
        # At an epoch's first step the data loader has drawn from the random numbers already; and
        # those of a resumed step are restored after this call.
        if self.state.global_step > self._step_of_epoch:
            self._stop_if_asked()
        indices = list(islice(epoch_iterator, num_batches))
        batches = iter(self._items.batches(indices))
        given, num_labels = super().get_batch_samples(batches, num_batches, device)
        complete = partial(self._task.complete, given, self._total, self.model, self._plan)
        # What an objective without measures adds takes no pass through the model.
        _ = self._group.compute(complete) if self._task.measures else complete()
        if self._group.size > 1:
            num_labels = torch.tensor(self._total(float(num_labels or 0)), device=device)
        return given, num_labels

    def _total(self, number: float) -> float:
        return sum(self._group.gather(number))

    def _stop_if_asked(self, *, is_evaluation_due: bool = False) -> None:
        if not self._group.any(self._should_stop()):
            return
        step = self.state.global_step
        if step != self._saved_step:
            self._save_checkpoint(self.model, None, is_evaluation_due=is_evaluation_due)
        raise StoppedError(f"stopped after step {step} of {self.state.max_steps}")

    def _is_done(self) -> bool:
        # As they were in the checkpoint: Trainer resets `self.control` when it begins to train.
        states: Any = self.state.stateful_callbacks
        stopped: bool = states["TrainerControl"]["args"]["should_training_stop"]
        stopped |= self.control.should_training_stop  # by the evaluation that was made up for
        return stopped or self.state.global_step >= self.state.max_steps

    def create_optimizer(
        self,
        model: Any = None,  # noqa: ANN401 - Trainer's signature
    ) -> torch.optim.Optimizer:
        """Create PEFT's optimizer for LoRA if it is asked for, else Trainer's own."""
        if self.optimizer is None:
            adamw = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = lora_optimizer(self.model, self._settings, adamw)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule, without a warmup that would take all steps.

        The learning rate of a warmup's first step is zero, so a run of one step would train
        nothing.
        """
        if self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:  # noqa: ANN401, ARG002
        return self._order

    def _save_checkpoint(
        self,
        model: torch.nn.Module,
        trial: Any,  # noqa: ANN401 - Trainer's signature
        *,
        is_evaluation_due: bool = False,
    ) -> None:
        measures, num_items = self._measures.kept
        kept = Kept(
            seconds_training=self.seconds_training(),
            unlogged_loss=self._tr_loss.item(),
            last_logged_step=self._globalstep_last_logged,
            is_evaluation_due=is_evaluation_due,
            num_processes=self._group.size,
            unlogged_measures=measures,
            num_unlogged_items=num_items,
        )
        random_states = self._group.gather(self._random_state() if self._group.rank else b"")
        if self._group.rank == 0:
            step = self.state.global_step
            with self._checkpoints.writing(step, kept) as folder:
                super()._save_checkpoint(model, trial)
                for rank, state in enumerate(random_states[1:], 1):
                    (folder / _random_state_of(rank)).write_bytes(state)
            self._checkpoints.prune(self._num_checkpoints, self.state.best_global_step)
        best = self._group.from_first(lambda: self.state.best_model_checkpoint)
        self.state.best_model_checkpoint = best
        self._saved_step = self.state.global_step

    def _random_state(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return (Path(folder) / _RANDOM_STATE).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._group.rank == 0 or checkpoint is None:
            super()._load_rng_state(checkpoint)
        elif self._resumed_from.num_processes == self._group.size:
            with tempfile.TemporaryDirectory() as folder:
                state = (Path(checkpoint) / _random_state_of(self._group.rank)).read_bytes()
                (Path(folder) / _RANDOM_STATE).write_bytes(state)
                super()._load_rng_state(folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and beside a training loss what was measured since the last one."""
        if "loss" in logs and (means := self._measures.take()):
            logs.update(self._task.named(means))
        super().log(logs, start_time)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,  # type: ignore[override]
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward on each micro-batch; return the sum of their losses."""
        loss = torch.zeros((), device=self.args.device)
        # Each backward pass frees its activations before the next micro-batch is computed, and
        # adds to the same gradients: memory is that of one micro-batch.
        for micro_batch in inputs["micro_batches"]:
            with noisy_embeddings(self.model, micro_batch, self._settings.neftune_noise_alpha):
                loss += super().training_step(model, micro_batch, num_items_in_batch)
        for filler in inputs.get("fillers", ()):
            self._fill_up(model, filler)
        if self.accelerator.sync_gradients:
            self._measures.end_step(self._group)
        return loss if self._group.size == 1 else self._reduced(loss)

    def _fill_up(self, model: torch.nn.Module, filler: MicroBatch) -> None:
        """Run forward and backward on a micro-batch, and add nothing to loss and gradients."""
        model.train()
        inputs = self._prepare_inputs(filler)
        with self.compute_loss_context_manager():
            loss, _ = self._loss(inputs)
        self.accelerator.backward(loss * 0)

    def _loss(self, inputs: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._group.compute(lambda: self._task.loss(self.model, inputs, self._plan))

    def _reduced(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss of all processes at the end of an optimizer step, and before that 0.

        At that end the gradients become those of all processes, too.
        """
        self._unreduced_loss += loss
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        training = [one for one in self.model.parameters() if one.requires_grad]
        total = self._group.add_up(training, self._unreduced_loss)
        self._unreduced_loss = torch.zeros_like(loss)
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,  # noqa: ARG002 - Trainer's own is the same
        inputs: MicroBatch,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - Trainer's signature
        """Return the micro-batch's summed loss, divided by the labels of the optimizer step.

        The shares add up to the mean over all trained tokens, however the rows are split and dealt
        out.
        """
        loss, measured = self._loss(inputs)
        self._measures.add(measured)
        if num_items_in_batch is None:
            num_items_in_batch = inputs["labels"].ne(IGNORED).sum()
        loss = loss / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ANN401 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - Trainer's signature
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the mean loss over all labels, in nats, and the task's metrics of the predictions.

        (Trainer itself returns the mean of the batches' means.) Of several sources, each is
        evaluated by itself, and its loss and metrics are returned with its name behind theirs. As
        Trainer does, log them and tell the callbacks.
        """
        is_mixed = eval_dataset is None and len(self._eval_sources) > 1
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        given: Mapping[str, Any] = self._eval_sources if is_mixed else {"": rows}
        sizes = {name: len(one) for name, one in given.items()}
        found: dict[str, Evaluated] = {}
        for name, one in given.items():
            num_before = sum(sizes[earlier] for earlier in found)
            found[name] = self._evaluated(one, num_before, sum(sizes.values()))
        scores = self._scores(total(found.values()))
        if is_mixed:
            for name, part in found.items():
                own = self._scores(part)
                scores |= {f"{metric}/{name}": value for metric, value in own.items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _evaluated(self, items: Items, num_before: int, num_in_all: int) -> Evaluated:
        """Return the summed loss and the predictions on held-out items.

        Args:
            items: rows, or pairs of them.
            num_before: items of other sources that this evaluation is done with, for the callbacks.
            num_in_all: items of all sources.
        """
        found, done = Evaluated(), num_before
        with eval_mode(self.model), torch.no_grad():
            for indices in items.in_order(self.args.eval_batch_size):
                self._stop_if_asked(is_evaluation_due=True)
                [batch] = items.batches([indices])
                for micro_batch in batch["micro_batches"]:
                    inputs = self._prepare_inputs(micro_batch)
                    with self.compute_loss_context_manager():
                        loss, guesses = self._loss(inputs)
                    found += Evaluated.of(loss, guesses, inputs["labels"])
                for filler in batch.get("fillers", ()):
                    with self.compute_loss_context_manager():
                        self._loss(self._prepare_inputs(filler))
                done += len(indices)
                self.control = self.callback_handler.call_event(
                    "on_prediction_step",
                    self.args,
                    self.state,
                    self.control,
                    num_evaluated=done,
                    num_held_out=num_in_all,
                )
        return total(self._group.gather(found))

    def _scores(self, found: Evaluated) -> dict[str, float]:
        names = list((self.model.config.id2label or {}).values())
        metrics = self._task.metrics(found.expected, found.predicted, names)
        return {"loss": found.loss / found.num_labels, **metrics}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:  # noqa: ANN401
        """Return whether this is the best evaluation so far; untrained weights never are.

        The learning rate of a warmup's first step is 0, so the adapter may still be untrained.
        """
        if not self._has_moved:
            now = read_adapter(self.model, self.adapter_name)
            self._has_moved = weight_change(self._initial, now) != 0
        return self._has_moved and super()._determine_best_metric(metrics, trial)

    # The next four replace what Trainer does with the full model's weights.

    def _save(
        self,
        output_dir: str | None = None,
        state_dict: dict[str, Any] | None = None,  # noqa: ARG002 - Trainer's signature
    ) -> None:
        weights = read_adapter(self.model, self.adapter_name)
        folder = Path(output_dir or str(self.args.output_dir))
        save_weights(weights, folder / WEIGHTS_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        self._read_adapter(Path(resume_from_checkpoint), model or self.model)

    def _load_best_model(self) -> None:
        self._read_adapter(Path(str(self.state.best_model_checkpoint)), self.model)

    def _read_adapter(self, checkpoint: Path, model: Any) -> None:  # noqa: ANN401
        weights = load_weights(checkpoint / WEIGHTS_FILE)
        write_adapter(model, self.adapter_name, weights)


def _random_state_of(rank: int) -> str:
    return f"rng_state_{rank}.pth"
