"""HF Trainer, taught about adapters that `add_adapter()` put into the model's own modules.

Trainer 5.23 does not see such a model as PEFT: it would look for whole-model checkpoints when it
resumes and when it goes back to the best one. Here a checkpoint holds the adapter only.
"""

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer

from tasks.engine import adapter_state
from tasks.engine.base_models import mixed_precision
from tasks.engine.batching import Batch
from tasks.engine.checkpoints import Checkpoints, Kept, kept_in
from tasks.engine.row_order import RowOrder
from tasks.engine.tokenization import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rows(Dataset[dict[str, list[int]]]):
    """Tokenised rows as a data set."""

    def __init__(self, items: list[dict[str, list[int]]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._items[index]


def labelled_logits(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Give the logits at the batch's labelled positions, [batch, kept, vocabulary].

    The model's output layer is spared all other positions where its forward allows that.
    """
    parameters = inspect.signature(model.forward).parameters
    known = ("input_ids", "attention_mask", "position_ids")
    inputs: dict[str, Any] = {name: batch[name] for name in known if name in parameters}
    if "logits_to_keep" in parameters:
        kept = model(**inputs, logits_to_keep=batch["logits_to_keep"], use_cache=False).logits
    else:
        kept = model(**inputs, use_cache=False).logits[:, batch["logits_to_keep"]]
    return kept  # type: ignore[no-any-return]


def summed_loss(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Give the cross entropy summed over the batch's labels, in nats."""
    with mixed_precision(model):  # Trainer itself has none for float16 on the CPU
        logits = labelled_logits(model, batch)
    return cross_entropy(
        logits.flatten(0, 1).float(),
        batch["labels"].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


class AdapterTrainer(Trainer):
    """Trains the active adapter; every loss is the mean over all trained tokens of its step."""

    loss_is_scaled_for_ga = True
    model: "PreTrainedModel"

    def __init__(
        self,
        *,
        adapter_name: str,
        order: RowOrder,
        checkpoints: Checkpoints,
        num_checkpoints: int,
        **arguments: Any,  # noqa: ANN401 - Trainer's own
    ) -> None:
        super().__init__(**arguments)
        self.adapter_name = adapter_name
        self._order = order
        self._checkpoints = checkpoints
        self._num_checkpoints = num_checkpoints
        self._resumed_from = Kept()
        self._started = time.perf_counter()
        # Asks Trainer to count the labels of a whole step, over accumulation and devices.
        self.model_accepts_loss_kwargs = True

    def train_on(self) -> int:
        """Train from the newest whole checkpoint, if there is one; give the step it was at."""
        newest = self._checkpoints.newest()
        self._resumed_from = kept_in(newest) if newest else Kept()
        self._started = time.perf_counter()
        self.train(resume_from_checkpoint=str(newest) if newest else None)
        return self._initial_global_step

    def seconds_training(self) -> float:
        """Give the seconds spent so far, those up to the checkpoint included."""
        return self._resumed_from.seconds_training + time.perf_counter() - self._started

    def _run_epoch(self, **arguments: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        if self.state.global_step == self._initial_global_step:
            # Trainer begins anew to add up the loss that it logs next.
            self._tr_loss += self._resumed_from.unlogged_loss
            self._globalstep_last_logged = self._resumed_from.last_logged_step
        if self._had_ended():  # Trainer would take another step before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)  # type: ignore[no-untyped-call]

    def _had_ended(self) -> bool:
        states: Any = self.state.stateful_callbacks
        stopped: bool = states["TrainerControl"]["args"]["should_training_stop"]
        return stopped or self.state.global_step >= self.state.max_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:  # noqa: ANN401, ARG002
        return self._order

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # noqa: ANN401
        kept = Kept(
            seconds_training=self.seconds_training(),
            unlogged_loss=self._tr_loss.item(),
            last_logged_step=self._globalstep_last_logged,
        )
        with self._checkpoints.writing(self.state.global_step, kept):
            super()._save_checkpoint(model, trial)
        self._checkpoints.prune(self._num_checkpoints, self.state.best_global_step)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - Trainer's signature
        """Give the batch's part of the step's mean loss."""
        loss = summed_loss(model, inputs)  # type: ignore[arg-type]
        if num_items_in_batch is None:
            num_items_in_batch = inputs["labels"].ne(IGNORED).sum()
        loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ANN401 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - Trainer's signature
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Give the mean loss over all labels (Trainer's own is a mean of batches' means)."""
        loss, tokens = 0.0, 0
        with _eval_mode(self.model), torch.no_grad():
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    part = summed_loss(self.model, inputs)
                count = inputs["labels"].ne(IGNORED).sum()
                totals = self.accelerator.reduce(torch.stack([part.double(), count.double()]))
                loss, tokens = loss + totals[0].item(), tokens + int(totals[1].item())
        metrics = {f"{metric_key_prefix}_loss": loss / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(
        self,
        output_dir: str | None = None,
        state_dict: dict[str, Any] | None = None,  # noqa: ARG002 - Trainer's signature
    ) -> None:
        weights = adapter_state.read_adapter(self.model, self.adapter_name)
        folder = Path(output_dir or str(self.args.output_dir))
        adapter_state.save_weights(weights, folder / adapter_state.WEIGHTS_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        self._read_adapter(Path(resume_from_checkpoint), model or self.model)

    def _load_best_model(self) -> None:
        self._read_adapter(Path(str(self.state.best_model_checkpoint)), self.model)

    def _read_adapter(self, checkpoint: Path, model: Any) -> None:  # noqa: ANN401
        weights = adapter_state.load_weights(checkpoint / adapter_state.WEIGHTS_FILE)
        adapter_state.write_adapter(model, self.adapter_name, weights)


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
