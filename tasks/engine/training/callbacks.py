"""Trainer callbacks: report progress, check losses, pace checkpoints and logs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from tasks.errors import VerificationError


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training run after a step, to be shown or logged."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    """What Trainer logged at this step; empty if it logged nothing."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """The time, in seconds of `time.monotonic`, which all processes of a machine share."""


OnTraining = Callable[[TrainingProgress], None]
OnEvaluating = Callable[[int, int], None]
"""Called with the number of held-out rows evaluated so far, and of all."""


class Watch(TrainerCallback):
    """Reports progress, and fails at the first loss that is not finite."""

    def __init__(self, on_progress: OnTraining, on_evaluating: OnEvaluating | None = None) -> None:
        self._on_progress = on_progress
        self._on_evaluating = on_evaluating

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Report the step."""
        self._on_progress(TrainingProgress(state.global_step, state.max_steps, {}))

    def on_prediction_step(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        num_evaluated: int = 0,
        num_held_out: int = 0,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Report the rows evaluated so far, which `AdapterTrainer` counts."""
        if self._on_evaluating:
            self._on_evaluating(num_evaluated, num_held_out)

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
                    f"training.learning_rate ({args.learning_rate:g}) or change base_model.dtype"
                )
        self._on_progress(TrainingProgress(state.global_step, state.max_steps, metrics))


class Beginning(TrainerCallback):
    """Calls a function when the training begins, with the state of the resumed checkpoint."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Call the function."""
        self._begin()


class Pace(TrainerCallback):
    """Saves a checkpoint when the last one is too old, and logs the loss before each evaluation.

    Args:
        seconds_between_checkpoints: the age at which a checkpoint is too old.
        is_agreed: returns whether it is too old in any of the training's processes: their clocks
            differ, and they save together.
    """

    def __init__(
        self, seconds_between_checkpoints: float, is_agreed: Callable[[bool], bool]
    ) -> None:
        self._seconds = seconds_between_checkpoints
        self._is_agreed = is_agreed
        self._last_saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Request a checkpoint if one is due, and a log line if an evaluation or the end is."""
        # At the end of an epoch Trainer evaluates after this callback and then saves. A run resumed
        # from a checkpoint saved here would start with the next epoch and skip that evaluation.
        ends_epoch = control.should_training_stop or float(state.epoch or 0).is_integer()
        is_old = time.monotonic() - self._last_saved >= self._seconds
        if not ends_epoch and self._is_agreed(is_old):
            control.should_save = True
        control.should_log |= control.should_evaluate or control.should_training_stop

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Request that the loss is logged; Trainer skips it if it has just been logged."""
        control.should_log = True

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Restart the clock, whoever requested the checkpoint."""
        self._last_saved = time.monotonic()
