"""Add an adapter beside one of the same configuration, and find PEFT's wrappers in a model.

Whenever an adapter is loaded or activated, transformers 5.23 and PEFT 0.21 look through all modules
of the model, those of its other adapters, too: the fiftieth takes many times as long as the first.
What PEFT makes of a configuration for each layer is there, though, if an adapter of the same one
is. Here it is copied, and nothing within the wrappers is looked through.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tasks.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

_COPIED = (".lora_A.weight", ".lora_B.weight")


def wrappers(module: "Module", path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield PEFT's wrappers around a model's modules with their names, not what is within them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        yield path, module
        return
    for name, child in module.named_children():
        yield from wrappers(child, f"{path}.{name}" if path else name)


def are_plain(model: "PreTrainedModel") -> bool:
    """Return whether all wrappers of a model are PEFT's around layers, with LoRA, unmerged."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    return all(
        isinstance(one, LoraLayer) and not isinstance(one, ParamWrapper) and not one.merged
        for _, one in wrappers(model)
    )


def can_copy(model: "PreTrainedModel", weights: Mapping[str, "Tensor"]) -> bool:
    """Return whether `add_sibling` knows all kinds of weights of an adapter and of the model's."""
    if not (all(key.endswith(_COPIED) for key in weights) and are_plain(model)):
        return False
    return not any(wrapper.lora_variant for _, wrapper in wrappers(model))


def add_sibling(
    model: "PreTrainedModel", sibling: str, name: str, weights: Mapping[str, "Tensor"]
) -> None:
    """Add an adapter to the wrappers that a sibling has, with weights of its own, all frozen.

    Args:
        model: the base with the sibling.
        sibling: the name of an adapter of the same configuration.
        name: of the new adapter.
        weights: the new adapter's, by their names in the base.

    Raises:
        VerificationError: the weights are not those that the sibling has; the model is unchanged.
    """
    made, left = [], dict(weights)
    for path, wrapper in wrappers(model):
        for kind in (*wrapper.adapter_layer_names, *wrapper.other_param_names):
            part = getattr(wrapper, kind)
            if sibling not in part:
                continue
            own = copy.deepcopy(part[sibling])
            if kind in wrapper.adapter_layer_names:
                given = left.pop(f"{path}.{kind}.weight", None)
                if given is None or given.shape != own.weight.shape:
                    raise VerificationError(f"{path} has no {kind} that fits {sibling!r}'s")
                own.requires_grad_(requires_grad=False)
                own.weight.data.copy_(given)
            made.append((part, own))
    if left:
        raise VerificationError(f"{len(left)} weights have no place, such as {next(iter(left))}")
    for part, own in made:
        part[name] = own
