"""The optimizers of PEFT that treat LoRA's matrices A and B differently.

Without them Trainer makes its own, in which all weights of the adapter have one learning rate.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.config import Task, TrainingSettings
from tasks.config.training import Batching, Optimizer
from tasks.errors import UserError
from tasks.records import BaseSource, LoraConfigRecord, ResolvedLora

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_training_settings(
    settings: TrainingSettings, lora: ResolvedLora, base: BaseSource
) -> None:
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
            f"{wanted} needs LoRA's matrices A and B, which lora.method {config.method} does not "
            "have; leave it out, or set lora.method to lora"
        )
    if is_lora_fa and isinstance(config, LoraConfigRecord):
        _check_lora_fa(config)
    if settings.neftune_noise_alpha:
        _check_noise(settings, base)


def _check_lora_fa(config: LoraConfigRecord) -> None:
    # PEFT's update is that of one product B·A.
    given = {
        "lora.use_dora": config.use_dora,
        "adapters of parameters, such as experts (lora.target_modules, lora.target_parameters)": (
            bool(config.target_parameters)
        ),
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(
                f"training.optim is lora_fa, which can't train {name}; set training.optim to "
                "adamw_torch, or leave the other out"
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
    # What PEFT's `create_lorafa_optimizer` does for a PeftModel. PEFT takes two parameters with
    # `lora` in their names for a pair, and keeps the pair's state under that name: here no others
    # have such a name, whatever modules and adapter are called, and no two pairs the same.
    from peft.optimizers.lorafa import LoraFAOptimizer

    pairs = list(_pairs(model))
    for a, _, _ in pairs:
        a.requires_grad = False
    in_pairs = {id(matrix) for *matrices, _ in pairs for matrix in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in in_pairs]
    group = {
        "params": [matrix for *matrices, _ in pairs for matrix in matrices] + others,
        "names": [f"{number}.lora" for number in range(len(pairs)) for _ in "AB"]
        + [f"other {number}" for number in range(len(others))],
        "scaling_factors": [scaling for *_, scaling in pairs for _ in "AB"] + [None] * len(others),
    }
    rate, decay = settings.learning_rate, settings.weight_decay
    made: torch.optim.Optimizer = LoraFAOptimizer([group], rate, weight_decay=decay)
    return made


def _pairs(
    model: "PreTrainedModel",
) -> "Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter, float]]":
    """Yield A, B and the scale of each adapted layer."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            [name] = layer.active_adapters
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            else:
                a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
            yield a, b, layer.scaling[name]
