"""What a training chooses by itself, for all its tries; smaller parts where memory is short."""

import json
import logging
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.config import TrainingSettings
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.data.token_files import row_lengths
from tasks.engine.objectives.registry import objective_of
from tasks.engine.training.checkpoints import Checkpoints
from tasks.errors import AdapterflowError
from tasks.records import DataRecord, InjectedRecord, TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

LAYOUT = 2
"""Of the plans that are written now."""
_SHORT_OF_MEMORY = "memory did not suffice"


def planned(
    checkpoints: Checkpoints,
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    settings: TrainingSettings,
) -> TrainingPlan:
    """Give what an earlier try chose; else choose, and keep it for later tries."""
    made_for = training_identity(injected, data.record, settings)
    plan = checkpoints.plan(made_for)
    if plan is None:
        task = objective_of(injected.lora.base.settings.task)
        choice = task.choose_batching(settings, data, model)
        plan = TrainingPlan(
            made_for=made_for,
            layout=LAYOUT,
            batching=choice.batching,
            prefix_length=choice.prefix_length,
            batch_tokens=choice.batch_tokens,
            loss_in_chunks=choice.loss_in_chunks,
            num_threads=torch.get_num_threads(),
            remarks=choice.remarks,
        )
        checkpoints.keep_plan(plan)
    return plan


def training_identity(
    injected: InjectedRecord, data: DataRecord, settings: TrainingSettings
) -> str:
    """Return the sha256 of all that a training is a function of.

    Contents only: no path, so that a run is resumed where its home was moved, and no wording.
    """
    lora = injected.lora
    inputs = {
        "adapter": lora.peft_config.to_json(),
        "initial_weights": injected.initial_weights.sha256,
        "base": injected.base_checksum,
        "base_settings": lora.base.settings.model_dump(
            mode="json", include={"task", "quantization", "gradient_checkpointing"}
        ),
        "dtype": lora.base.dtype,
        "seed": lora.seed,
        "tokens": [file.sha256 for file in data.tokens],
        "settings": settings.model_dump(mode="json"),
    }
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def with_less_memory(
    plan: TrainingPlan, data: PreparedData, settings: TrainingSettings, error: BaseException
) -> TrainingPlan:
    """Give the plan with parts of half the size, which give the same sums in more passes.

    Raises:
        AdapterflowError: the size is the user's, or the longest row is a part by itself already.
    """
    lengths = np.sort(row_lengths(data.train.rows))
    longest, largest_batch = int(lengths[-1]), int(lengths[-settings.batch_size :].sum())
    given = min(plan.batch_tokens, largest_batch)
    log.warning("out of memory with %d tokens at once: %s", given, error)
    if settings.batch_tokens == "auto" and given > longest:
        smaller = max(longest, given // 2)
        remark = f"{_SHORT_OF_MEMORY} for {given} tokens at once, so {smaller} are computed"
        others = [one for one in plan.remarks if not one.startswith(_SHORT_OF_MEMORY)]
        return plan.model_copy(update={"batch_tokens": smaller, "remarks": (*others, remark)})
    fewer = "training.batch_tokens: auto, " if given > longest else ""
    raise AdapterflowError(
        f"{_SHORT_OF_MEMORY} for training with {given} tokens at once (the longest row has "
        f"{longest}). What makes it less: {fewer}base_model.gradient_checkpointing: true, "
        f"base_model.quantization: 4bit, a smaller lora.r, data.max_length below {longest}. "
        "Change one and train anew; `adapterflow check` says what it comes to."
    ) from error
