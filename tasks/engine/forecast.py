"""What training will take, found out before it runs: sizes by counting, the rest by a probe.

The probe is the training itself, for a few steps on the run's own first rows, in a temporary
folder: its peak memory is what the training will need, and its seconds per token give the time.
"""

import math
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import Batching, LearningObjective, TrainAdapterConfig
from tasks.engine.base import bases_on_host, release_memory
from tasks.engine.batching import num_shared, row_order
from tasks.engine.data.tokens import (
    PreparedData,
    conversation_starts,
    row_lengths,
    shared_prefix_length,
)
from tasks.engine.steps import configure_lora, inject_adapter, load_base, train_adapter
from tasks.records import (
    BaseSource,
    DataRecord,
    LearnedPreferences,
    Record,
    ResolvedLora,
)
from tasks.runtime.measuring import measured

if TYPE_CHECKING:
    from tasks.config import TrainingSettings
    from tasks.engine.training import OnTraining
    from tasks.records import InjectedRecord, TrainedRecord

    TrainGroup = Callable[
        [InjectedRecord, DataRecord, TrainingSettings, Path, OnTraining, int],
        tuple[TrainedRecord, tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    ]

# Enough for memory to reach its peak, and for the median to ignore one slow step.
_PROBE_STEPS = 6
_PROBE_EVAL_BATCHES = 2


class Probe(Record):
    """What the probe's steps took."""

    batching: str
    base_bytes: int
    own_base_bytes: int = 0
    """Of the process that has most of it, where each has a part."""
    peak_memory_bytes: int
    """Of the process at its peak; of several, of the one that needs most."""
    peak_gpu_bytes: int
    seconds_per_step: float
    """For a step with the mean number of tokens."""
    seconds_per_evaluation: float
    """For all held-out rows."""
    seconds_reference: float = 0.0
    """For the reference of all pairs, where pairs are learned."""


class Forecast(Record):
    """What training will take."""

    base: str
    dtype: str
    quantization: str
    task: str
    num_total_parameters: int
    num_trainable_parameters: int
    data: DataRecord
    num_steps: int
    num_evaluations: int
    rows_per_step: int
    num_processes: int = 1
    probe: Probe | None
    learned: str = ""
    """How preferences are learned, if they are."""
    warnings: tuple[str, ...] = ()
    """The warnings of step 2: what is unusual, or leaves weights frozen."""
    notes: tuple[str, ...] = ()
    """The notes of step 2: what is as it should be, and good to know."""

    @property
    def adapter_bytes(self) -> int:
        """The bytes of the adapter's float32 weights, gradients and AdamW's two moments."""
        return 16 * self.num_trainable_parameters

    @property
    def seconds_training(self) -> float | None:
        """The seconds of training, evaluation and the reference; None without a probe."""
        if self.probe is None:
            return None
        evaluations = self.num_evaluations * self.probe.seconds_per_evaluation
        steps = self.num_steps * self.probe.seconds_per_step
        return steps + evaluations + self.probe.seconds_reference


def forecast(  # noqa: PLR0913 - what a forecast is of
    config: TrainAdapterConfig,
    source: BaseSource,
    lora: ResolvedLora,
    data: PreparedData,
    *,
    with_probe: bool,
    num_processes: int = 1,
    train_group: "TrainGroup | None" = None,
    folder: Path | None = None,
) -> Forecast:
    """Return what training as configured will take, for inputs that were checked.

    Args:
        config: of the run.
        source: the base.
        lora: as resolved for the base.
        data: both splits as tokens.
        with_probe: whether to run a few steps to measure memory and time.
        num_processes: the processes that will train.
        train_group: trains in several of them, and returns what they came to with the peak memory
            and GPU memory of each, and the bytes of its part of a sharded base; it gets the model's
            record, the data's, the settings, the folder for checkpoints, what to report to, and the
            number of held-out rows.
        folder: in which the probe has a temporary one; the system's unless given.

    Raises:
        UserError: the configuration cannot be used, with the message of the run itself.
    """
    training = config.training
    is_sft = training.objective is LearningObjective.SFT
    num_steps = _num_steps(config, data.record)
    every = training.eval_steps or _steps_per_epoch(config, data.record)
    return Forecast(
        base=source.reference,
        dtype=source.dtype,
        quantization=config.base_model.quantization.value,
        task=config.base_model.task.value,
        num_total_parameters=lora.num_total_parameters,
        num_trainable_parameters=lora.num_trainable_parameters,
        # The token files are temporary, and deleted before the forecast is shown.
        data=data.record.model_copy(update={"tokens": ()}),
        num_steps=num_steps,
        num_evaluations=math.ceil(num_steps / every) if data.eval else 0,
        rows_per_step=_rows_per_step(config),
        num_processes=num_processes,
        probe=_probe(config, lora, data, train_group, folder) if with_probe else None,
        learned="" if is_sft else f"{training.objective}, {training.preference_settings.text}",
        warnings=lora.warnings,
        notes=lora.notes,
    )


def _probe(
    config: TrainAdapterConfig,
    lora: ResolvedLora,
    data: PreparedData,
    train_group: "TrainGroup | None",
    beside: Path | None,
) -> Probe:
    from tasks.engine.training import TrainingProgress

    settings = config.training.model_copy(
        update={"max_steps": _PROBE_STEPS, "eval_steps": None, "logging_steps": 1}
    )
    num_eval_rows = _PROBE_EVAL_BATCHES * settings.batch_size
    step_ends: list[float] = []
    seconds_evaluating = 0.0

    def on_progress(now: TrainingProgress) -> None:
        nonlocal seconds_evaluating
        if not now.metrics:
            step_ends.append(now.at)
        elif "eval_loss" in now.metrics:
            seconds_evaluating += now.at - step_ends[-1]

    with (
        tempfile.TemporaryDirectory(dir=beside) as folder,
        bases_on_host(needed=config.launch.shards),
        measured() as measurement,
    ):
        model, base = load_base(config.base_model, data.record.labels)
        configured = configure_lora(lora, base, config.seed)
        injected = inject_adapter(model, configured, Path(folder) / "initial.safetensors")
        checkpoints = Path(folder) / "checkpoints"
        if train_group:
            del model
            release_memory()
            trained, memory, gpu_memory, own_base = train_group(
                injected, data.record, settings, checkpoints, on_progress, num_eval_rows
            )
        else:
            trained = train_adapter(
                model,
                injected,
                data.record,
                settings,
                checkpoints,
                on_progress,
                max_eval_rows=num_eval_rows,
            )
            memory = gpu_memory = own_base = ()
    return Probe(
        batching=trained.batching,
        base_bytes=base.num_bytes,
        own_base_bytes=max(own_base, default=0),
        peak_memory_bytes=max(memory, default=measurement.peak_memory_bytes),
        peak_gpu_bytes=max(gpu_memory, default=measurement.peak_gpu_bytes),
        seconds_per_step=_seconds_per_step(config, data, trained.batching, step_ends),
        seconds_per_evaluation=seconds_evaluating * _eval_token_ratio(data, num_eval_rows),
        seconds_reference=_seconds_reference(config, data.record, trained.preferences),
    )


def _seconds_reference(
    config: TrainAdapterConfig, data: DataRecord, learned: LearnedPreferences | None
) -> float:
    """Return the seconds of the reference of all prompts, by those of the probe's."""
    if learned is None or not learned.num_reference_pairs:
        return 0.0
    num_prompts = data.train.num_rows + (data.eval.num_rows if data.eval else 0)
    if learned.objective is LearningObjective.KTO:  # each step mismatches its rows
        num_prompts += _num_steps(config, data) * _rows_per_step(config)
    return learned.seconds_reference / learned.num_reference_pairs * num_prompts


def _rows_per_step(config: TrainAdapterConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def _steps_per_epoch(config: TrainAdapterConfig, data: DataRecord) -> int:
    return math.ceil(data.train.num_rows / _rows_per_step(config))


def _num_steps(config: TrainAdapterConfig, data: DataRecord) -> int:
    training = config.training
    every = _steps_per_epoch(config, data)
    return training.max_steps or math.ceil(training.num_train_epochs * every)


def _eval_token_ratio(data: PreparedData, num_rows: int) -> float:
    """Return the number of tokens of all held-out rows, divided by that of the first ones."""
    if data.eval is None:
        return 0.0
    lengths = row_lengths(data.eval.rows)
    return float(lengths.sum() / lengths[: num_rows * data.record.rows_per_item].sum())


def _seconds_per_step(
    config: TrainAdapterConfig, data: PreparedData, batching: str, step_ends: list[float]
) -> float:
    """Return the seconds of a step with the mean number of tokens.

    The first step is a warm-up and does not count.
    """
    lengths = row_lengths(data.train.rows)
    if batching == Batching.SHARED_PREFIX:
        # The prefix is computed once per micro-batch, so its time is negligible. What a row shares
        # with an earlier one of its conversation is computed with that one.
        prefix = shared_prefix_length(data.train.rows)
        lengths = lengths - num_shared(data.train.rows).clip(min=prefix)
    rows = _rows_per_step(config)
    starts = conversation_starts(data.train.rows)
    if data.record.rows_per_item > 1:  # what is drawn are pairs
        lengths = lengths.reshape(-1, data.record.rows_per_item).sum(axis=1)
        starts = np.arange(len(lengths))
    order = row_order(
        lengths,
        starts,
        batching,
        config.seed,
        batch_size=config.training.batch_size,
        accumulation_steps=config.training.gradient_accumulation_steps,
    )
    tokens: list[int] = []
    while len(tokens) < len(step_ends):
        order.set_epoch(len(tokens) * rows // len(lengths))
        epoch = list(order)
        tokens += [int(lengths[epoch[at : at + rows]].sum()) for at in range(0, len(lengths), rows)]
    steps = zip(pairwise(step_ends), tokens[1:], strict=False)
    seconds_per_token = median((end - start) / count for (start, end), count in steps)
    return seconds_per_token * int(lengths.sum()) / math.ceil(len(lengths) / rows)
