"""Which layers of a model LoRA can adapt, judged by what PEFT accepts."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def adaptable(model: "PreTrainedModel") -> dict[str, "nn.Module"]:
    """Return the modules that LoRA can adapt, by dotted name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    refused = _refused_names({name.rpartition(".")[2] for name in layers}, model)
    return {name: m for name, m in layers.items() if name.rpartition(".")[2] not in refused}


def _refused_names(names: Iterable[str], model: "PreTrainedModel") -> set[str]:
    """Return the names that can't be targets: PEFT judges by the name alone.

    PEFT 0.21 refuses layers whose weights Mamba's kernels use without calling their forward. It
    also maps the names that experts had in transformers 4 to the fused experts of transformers 5,
    even if a dense layer has the same name.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    refused = set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            _check_lora_target_modules_mamba(config, model, name)
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:
            refused.add(name)
        if config.target_parameters:
            refused.add(name)
    return refused
