"""What a training run chooses by itself, once for all its attempts.

Where memory runs out, the plan is changed to smaller micro-batches.
"""

import json
import logging
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.config import LearningObjective, TrainingSettings
from tasks.engine.data.tokens import PreparedData, row_lengths
from tasks.engine.objectives import objective_of
from tasks.engine.training.checkpoints import Checkpoints
from tasks.engine.training.group import ALONE, Group
from tasks.errors import AdapterflowError
from tasks.records import DataRecord, InjectedRecord, TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

LAYOUT = 2
"""Of the plans that are written now."""
_OUT_OF_MEMORY = "out of memory"


def planned(  # noqa: PLR0913 - what a plan is made for
    checkpoints: Checkpoints,
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: PreparedData,
    settings: TrainingSettings,
    group: Group = ALONE,
) -> TrainingPlan:
    """Return the plan of an earlier attempt, else make one and store it for later attempts.

    An attempt with another number of processes changes the plan's, and its number of threads. The
    first process decides for all.

    Raises:
        UserError: `training.batching` asks for what the task, model or rows do not allow.
    """
    made_for = training_identity(injected, data.record, settings)
    plan = group.from_first(lambda: checkpoints.plan(made_for))
    if plan is None:
        task = objective_of(injected.lora.base.settings.task, settings.objective)
        choice = group.agreed(lambda: task.choose_batching(settings, data, model))
        plan = TrainingPlan(
            made_for=made_for,
            layout=LAYOUT,
            batching=choice.batching,
            prefix_length=choice.prefix_length,
            batch_tokens=choice.batch_tokens,
            loss_in_chunks=choice.loss_in_chunks,
            num_threads=torch.get_num_threads(),
            num_processes=group.size,
            warnings=choice.warnings,
        )
        return group.from_first(lambda: _kept(plan, checkpoints))
    if plan.num_processes != group.size:
        changed = plan
        return group.from_first(
            lambda: _kept(_with_other_processes(changed, group.size), checkpoints)
        )
    return plan


def _kept(plan: TrainingPlan, checkpoints: Checkpoints) -> TrainingPlan:
    checkpoints.keep_plan(plan)
    return plan


def _with_other_processes(plan: TrainingPlan, num_processes: int) -> TrainingPlan:
    warning = (
        f"trained in {num_processes} processes after {plan.num_processes}: the adapter is not "
        "byte-identical to one that was trained in equally many throughout"
    )
    log.warning(warning)
    update = {
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "warnings": (*plan.warnings, warning),
    }
    return plan.model_copy(update=update)


def training_identity(
    injected: InjectedRecord, data: DataRecord, settings: TrainingSettings
) -> str:
    """Return the sha256 of all that a training is a function of.

    Contents only: no path, so that a run is resumed where its home was moved, and no wording.
    """
    unused = _unused(settings)
    inputs = {
        **what_is_computed(injected, data),
        "seed": injected.lora.seed,
        "settings": {k: v for k, v in settings.with_defaults().items() if k not in unused},
    }
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def what_is_computed(injected: InjectedRecord, data: DataRecord) -> dict[str, object]:
    """Return what the outputs of an untrained model are a function of, as JSON values."""
    lora = injected.lora
    return {
        "adapter": lora.peft_config.to_json(),
        "initial_weights": injected.initial_weights.sha256,
        "base": injected.base_checksum,
        "base_files": [file.sha256 for file in lora.base.files],
        "base_settings": lora.base.settings.model_dump(
            mode="json", include={"task", "quantization", "gradient_checkpointing"}
        ),
        "dtype": lora.base.dtype,
        "tokens": [file.sha256 for file in data.tokens],
    }


def _unused(settings: TrainingSettings) -> set[str]:
    """Return the settings that do not matter, or came later and are not used.

    A run begun before there were any goes on.
    """
    later = ("loraplus_lr_ratio", "neftune_noise_alpha", "preferences")
    unused = {"termination_seconds", *(name for name in later if getattr(settings, name) is None)}
    return unused | {"objective"} if settings.objective is LearningObjective.SFT else unused


def with_less_memory(
    plan: TrainingPlan, data: PreparedData, settings: TrainingSettings, error: BaseException
) -> TrainingPlan:
    """Return the plan with micro-batches of half the size, which add up to the same gradients.

    Args:
        plan: the plan that memory did not suffice for.
        data: the training rows.
        settings: the training settings.
        error: the error that memory ran out with.

    Raises:
        AdapterflowError: `training.batch_tokens` is set to a number, or micro-batches are as small
            as the longest row already.
    """
    # The two rows of a pair are never in two micro-batches.
    items = row_lengths(data.train.rows).reshape(-1, data.record.rows_per_item)
    lengths = np.sort(items.sum(axis=1))
    longest, largest_batch = int(lengths[-1]), int(lengths[-settings.batch_size :].sum())
    # A limit above the largest batch limits nothing: to halve it would only repeat the failure.
    given = min(plan.batch_tokens, largest_batch)
    log.warning("out of memory with micro-batches of %d tokens: %s", given, error)
    if settings.batch_tokens == "auto" and given > longest:
        smaller = max(longest, given // 2)
        warning = f"{_OUT_OF_MEMORY} with micro-batches of {given} tokens, reduced to {smaller}"
        others = [one for one in plan.warnings if not one.startswith(_OUT_OF_MEMORY)]
        return plan.model_copy(update={"batch_tokens": smaller, "warnings": (*others, warning)})
    fewer = "training.batch_tokens: auto, " if given > longest else ""
    raise AdapterflowError(
        f"{_OUT_OF_MEMORY} while training with micro-batches of {given} tokens (the longest row "
        f"has {longest}). These settings need less memory: {fewer}"
        "base_model.gradient_checkpointing: true, base_model.quantization: 4bit, a smaller lora.r, "
        f"data.max_length below {longest}. Change one and train again; `adapterflow check` "
        "forecasts the memory."
    ) from error
