"""Add an adapter beside one of the same configuration, and find PEFT's wrappers in a model.

Whenever an adapter is loaded or activated, transformers 5.23 and PEFT 0.21 look through all modules
of the model, those of its other adapters, too: the fiftieth takes many times as long as the first.
What PEFT makes of a configuration for each layer is there, though, if an adapter of the same one
is. Here it is copied, and nothing within the wrappers is looked through.

This file is stored with each adapter in MLflow, where `tasks/tracking/served_model` uses it, so it
imports nothing of this project.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

_COPIED = (".lora_A.weight", ".lora_B.weight")
_configurations: "WeakKeyDictionary[PreTrainedModel, dict[str, tuple[PeftConfig, str]]]" = (
    WeakKeyDictionary()
)
"""PEFT's configuration of each adapter that was loaded into a model, by its name, and what its
`adapter_config.json` says.

PEFT changes its configurations, so they can't be compared. They tell whether the adapter of that
name is still the one that was loaded.
"""


def remember(model: "PreTrainedModel", name: str, given: Mapping[str, Any]) -> None:
    """Note the configuration, as its file gives it, of an adapter that was loaded completely."""
    known = _configurations.setdefault(model, {})
    known[name] = (model.peft_config[name], json.dumps(given, sort_keys=True))


def forget(model: "PreTrainedModel", name: str) -> None:
    """Forget an adapter that was removed, or none."""
    _configurations.get(model, {}).pop(name, None)


def sibling_of(
    model: "PreTrainedModel", given: Mapping[str, Any], weights: Mapping[str, "Tensor"]
) -> str | None:
    """Return an adapter of the same configuration, beside which `add_sibling` can add one.

    Args:
        model: the base with any adapters.
        given: the configuration of the adapter to add, as its file gives it.
        weights: of the adapter to add, by their names in the base.

    Returns:
        The adapter's name; None if there is none, or PEFT has to load the one to add.
    """
    wanted = json.dumps(given, sort_keys=True)
    present = getattr(model, "peft_config", {})
    for name, (config, configuration) in _configurations.get(model, {}).items():
        if present.get(name) is config and configuration == wanted:
            return name if _can_copy(model, weights) else None
    return None


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


def _can_copy(model: "PreTrainedModel", weights: Mapping[str, "Tensor"]) -> bool:
    """Return whether `add_sibling` knows all kinds of weights of an adapter and of the model's."""
    if not (all(key.endswith(_COPIED) for key in weights) and are_plain(model)):
        return False
    return not any(wrapper.lora_variant for _, wrapper in wrappers(model))


def add_sibling(
    model: "PreTrainedModel",
    sibling: str,
    name: str,
    config: "PeftConfig",
    weights: Mapping[str, "Tensor"],
) -> list[str]:
    """Add an adapter to the wrappers that a sibling has, all frozen and not active.

    Args:
        model: the base with the sibling; it is in evaluation mode afterwards, as after PEFT.
        sibling: the adapter that `sibling_of` found.
        name: of the new adapter.
        config: its configuration.
        weights: its weights, by their names in the base.

    Returns:
        The weights that it lacks or has no place for; if there are some, the model is unchanged.
    """
    made, left, misfits = [], dict(weights), []
    for path, wrapper in wrappers(model):
        for kind in (*wrapper.adapter_layer_names, *wrapper.other_param_names):
            part = getattr(wrapper, kind)
            if sibling not in part:
                continue
            if kind not in wrapper.adapter_layer_names:
                made.append((part, copy.deepcopy(part[sibling])))
                continue
            key = f"{path}.{kind}.weight"
            given = left.pop(key, None)
            if given is None or given.shape != part[sibling].weight.shape:
                misfits.append(key)
            else:
                made.append((part, _with_weight(part[sibling], given)))
    if misfits := misfits + list(left):
        return misfits
    for part, own in made:
        part[name] = own
    config.inference_mode = True
    model.peft_config[name] = config
    if model.training:
        model.eval()
    return []


def _with_weight(layer: Any, given: "Tensor") -> Any:  # noqa: ANN401 - as PEFT made it
    """Return a copy of a linear layer with another weight, frozen, in the layer's dtype."""
    from torch.nn import Parameter

    # Copied, as a tensor that was read may be a view of the file. The layer's own weight isn't.
    weight = layer.weight.detach().new_empty(given.shape).copy_(given)
    return copy.deepcopy(layer, {id(layer.weight): Parameter(weight, requires_grad=False)})
