"""The optimizers of PEFT that treat LoRA's matrices A and B differently.

Without them Trainer makes its own, in which all weights of the adapter have one learning rate.
"""

from typing import TYPE_CHECKING, Any

from tasks.config import Task, TrainingSettings
from tasks.config.training import Batching, Optimizer
from tasks.errors import UserError
from tasks.records import BaseSource, LoraConfigRecord, ResolvedLora

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_training(settings: TrainingSettings, lora: ResolvedLora, base: BaseSource) -> None:
    """Refuse training settings that the adapter or the task has no use for.

    Raises:
        UserError: `loraplus_lr_ratio` or `lora_fa` with an adapter without plain A and B, or both
            together; `neftune_noise_alpha` with a task or a batching that can't have it.
    """
    config = lora.peft_config
    is_lora_fa, ratio = settings.optim is Optimizer.LORA_FA, settings.loraplus_lr_ratio
    wanted = "training.optim lora_fa" if is_lora_fa else "training.loraplus_lr_ratio"
    if is_lora_fa and ratio:
        raise UserError(
            "training.optim is lora_fa, which leaves A as it is, and training.loraplus_lr_ratio is "
            f"{ratio:g}, the ratio of B's learning rate to A's; set one of them"
        )
    if (is_lora_fa or ratio) and not isinstance(config, LoraConfigRecord):
        raise UserError(
            f"{wanted} is for LoRA's matrices A and B, which lora.method {config.method} has not; "
            "leave it out, or use method lora"
        )
    if is_lora_fa and isinstance(config, LoraConfigRecord):
        _check_lora_fa(config)
    if settings.neftune_noise_alpha:
        _check_noise(settings, base)


def _check_lora_fa(config: LoraConfigRecord) -> None:
    # PEFT takes the parameters whose names contain `lora` for pairs of A and B, and A for the input
    # of one layer.
    given = {
        "lora.use_dora": config.use_dora,
        "adapters of parameters, such as experts (lora.target_modules, lora.target_parameters)": (
            bool(config.target_parameters)
        ),
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(
                f"training.optim is lora_fa, which can't train {name}; use adamw_torch, or leave "
                "them out"
            )


def _check_noise(settings: TrainingSettings, base: BaseSource) -> None:
    task = base.settings.task
    if task is not Task.CAUSAL_LM:
        raise UserError(
            f"training.neftune_noise_alpha is for causal language models; base_model.task is "
            f"{task.value}"
        )
    if settings.batching is Batching.SHARED_PREFIX:
        raise UserError(
            "training.neftune_noise_alpha gives each row noise of its own, so rows can't share a "
            "prefix; set training.batching to auto, packed or padded"
        )


def lora_optimizer(
    model: "PreTrainedModel",
    settings: TrainingSettings,
    adamw: tuple[type["torch.optim.Optimizer"], dict[str, Any]],
) -> "torch.optim.Optimizer | None":
    """Return the optimizer that the settings ask for; None where it is Trainer's own.

    With `lora_fa`, A is frozen from then on.

    Args:
        model: the model with its adapter, which must be the only one.
        settings: the training settings.
        adamw: the class of Trainer's optimizer, and its arguments.
    """
    from peft.optimizers import create_loraplus_optimizer

    if settings.optim is Optimizer.LORA_FA:
        return _lora_fa(model, settings)
    if settings.loraplus_lr_ratio is None:
        return None
    kind, arguments = adamw
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        kind,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
        loraplus_weight_decay=settings.weight_decay,
        loraplus_lr_embedding=settings.learning_rate,  # PEFT's default, 1e-6, trains next to none
        **arguments,
    )
    return made


def _lora_fa(model: "PreTrainedModel", settings: TrainingSettings) -> "torch.optim.Optimizer":
    # What PEFT's `create_lorafa_optimizer` does for a PeftModel.
    from peft.optimizers.lorafa import LoraFAOptimizer

    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for name, weight in weights.items():
        if ".lora_A." in name:
            weight.requires_grad = False
    group = {
        "params": list(weights.values()),
        "names": list(weights),
        "scaling_factors": [_scaling(model, name) for name in weights],
    }
    rate, decay = settings.learning_rate, settings.weight_decay
    made: torch.optim.Optimizer = LoraFAOptimizer([group], rate, weight_decay=decay)
    return made


def _scaling(model: "PreTrainedModel", name: str) -> float | None:
    """Return the scale of the update that a weight is part of; None of other weights."""
    layer, is_lora, weight = name.rpartition(".lora_")
    if not is_lora:
        return None
    scaling: dict[str, float] = model.get_submodule(layer).scaling  # type: ignore[assignment]
    return scaling[weight.split(".")[1]]
