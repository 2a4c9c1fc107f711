"""The weights of a base that stay frozen: out of reach of any target, or passed over by a choice.

A state space model's transitions are a parameter of the mixer, and no layer that can be targeted.
Some linear layers can't be targeted as PEFT takes their names for those of fused experts.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.experts import ExpertParameter, expert_parameters, is_router, routers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_REPORTED_SHARE = 0.01
"""Smaller shares of the base's weights are not reported."""


@dataclass(frozen=True)
class _Weight:
    name: str
    """The parameter's name, or the layer's if the parameter is just called `weight`."""
    of_class: str
    num_elements: int


def describe_out_of_reach(model: "PreTrainedModel", adapted: Collection[str]) -> list[str]:
    """Describe the weights that no target module can reach, with their share, if it counts.

    Args:
        model: the base.
        adapted: the dotted names of what is adapted.
    """
    experts = expert_parameters(model)
    found = list(_out_of_reach(model, {*adapted, *(one.name for one in experts)}))
    share = sum(one.num_elements for one in found) / model.num_parameters()
    if share < _REPORTED_SHARE:
        return []
    # PEFT takes a linear layer's name for that of an expert, but not the name of its weight.
    former = {old for one in experts for old in one.formerly}
    weights = sorted({f"{one.name}.weight" for one in found if one.name in former})
    how = f"; name them in lora.target_parameters: {', '.join(weights)}" if weights else ""
    warning = f"{share:.0%} of the base's weights stay frozen whatever lora.target_modules is: "
    return [f"{warning}{_named(found)}{how}"]


def describe_frozen_experts(model: "PreTrainedModel", adapted: Collection[str]) -> list[str]:
    """Describe the experts, with their share, if none of them is adapted.

    Args:
        model: the base.
        adapted: the dotted names of what is adapted.
    """
    experts = expert_parameters(model)
    if not experts or any(one.name in adapted for one in experts):
        return []
    share = sum(one.num_elements for one in experts) / model.num_parameters()
    warning = f"{share:.0%} of the base's weights are in experts, which stay frozen: "
    return [f"{warning}{_named(experts)}; to adapt them, add experts to lora.target_modules"]


def note_frozen_routers(model: "PreTrainedModel", adapted: Collection[str]) -> list[str]:
    """Note that the routers stay frozen, if experts are adapted and none of the routers is.

    Args:
        model: the base.
        adapted: the dotted names of what is adapted.
    """
    found = routers(model)
    if not found or {*found, *found.values()} & {*adapted}:
        return []
    if not any(one.name in adapted for one in expert_parameters(model)):
        return []
    names = ", ".join(sorted({one.rpartition(".")[2] for one in found}))
    return [f"the routers ({names}) stay frozen; to adapt them, name them in lora.target_modules"]


def describe_passed_over(
    model: "PreTrainedModel", passed_over: Collection["nn.Module"], how: str
) -> list[str]:
    """Describe the adaptable layers that a choice of all layers does not include, with their share.

    Args:
        model: the base.
        passed_over: its adaptable layers that are not targets, without embeddings and output layer.
        how: the choice, such as `all-linear`.

    Returns:
        At most one warning; none if the share is negligible.
    """
    sizes = {m: sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in passed_over}
    share = sum(sizes.values()) / model.num_parameters()
    if share < _REPORTED_SHARE:
        return []
    names = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if m in sizes})
    warning = f"{share:.0%} of the base's weights are in layers that {how} does not include; "
    return [f"{warning}to adapt them, name them in lora.target_modules: {', '.join(names)}"]


def _out_of_reach(model: "PreTrainedModel", others: Collection[str]) -> Iterator[_Weight]:
    """Yield the matrices that are not parameters of a layer that LoRA can adapt, without `others`.

    Routers are left out, as they are meant to stay frozen, and so are the biases of experts.
    """
    layers = set(adaptable(model))
    for path, module in model.named_modules():
        if path in layers or is_router(path, module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = sum(size > 1 for size in parameter.shape) > 1
            if is_matrix and not name.endswith("bias") and f"{path}.{name}" not in others:
                own = path.rpartition(".")[2] if name == "weight" else name
                yield _Weight(own, type(module).__name__, parameter.numel())


def _named(weights: Iterable[_Weight | ExpertParameter]) -> str:
    names: dict[str, dict[str, None]] = {}
    for one in weights:
        names.setdefault(one.of_class, {})[one.name.rpartition(".")[2]] = None
    return ", ".join(f"{', '.join(of_class)} ({kind})" for kind, of_class in names.items())
