"""The weights of a base that stay frozen because they are in no layer that LoRA can adapt.

transformers 5 has a mixture's experts as three-dimensional parameters of one module, and a state
space model's transitions as a parameter of the mixer. Neither is a layer that can be targeted.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.engine.adapters.adaptable import adaptable

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_REPORTED_SHARE = 0.01
"""Smaller shares of the base's weights are not reported."""
_FUSED = 3
"""The number of dimensions of a parameter that has one matrix per expert."""


@dataclass(frozen=True)
class _Weight:
    name: str
    """The parameter's name, or the layer's if the parameter is just called `weight`."""
    of_class: str
    parameter: "nn.Parameter"

    @property
    def is_fused(self) -> bool:
        """Whether there is one matrix per expert; a depthwise convolution's has a size of 1."""
        return self.parameter.ndim == _FUSED and min(self.parameter.shape) > 1


def fused_experts(model: "PreTrainedModel") -> str:
    """Return the names of fused experts with their modules' classes; empty if there are none."""
    return _named(one for one in _out_of_reach(model) if one.is_fused)


def describe_out_of_reach(model: "PreTrainedModel") -> list[str]:
    """Describe the weights that no target can reach, with their share; empty if negligible."""
    found = list(_out_of_reach(model))
    share = sum(one.parameter.numel() for one in found) / model.num_parameters()
    experts = "; fused experts can't be adapted yet" if fused_experts(model) else ""
    if share < _REPORTED_SHARE and not experts:
        return []
    shown = f"{share:.2%}" if share < _REPORTED_SHARE else f"{share:.0%}"
    warning = f"{shown} of the base's weights stay frozen whatever lora.target_modules is: "
    return [f"{warning}{_named(found)}{experts}"]


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


def _out_of_reach(model: "PreTrainedModel") -> Iterator[_Weight]:
    """Yield the matrices that are not parameters of a layer that LoRA can adapt.

    Routers are left out, as they are meant to stay frozen, and so are the biases of experts.
    """
    layers = set(adaptable(model))
    for path, module in model.named_modules():
        if path in layers or _is_router(path, module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = sum(size > 1 for size in parameter.shape) > 1
            if is_matrix and not name.endswith("bias"):
                own = path.rpartition(".")[2] if name == "weight" else name
                yield _Weight(own, type(module).__name__, parameter)


def _is_router(path: str, module: "nn.Module") -> bool:
    return path.rpartition(".")[2] in ("gate", "router") or "Router" in type(module).__name__


def _named(weights: Iterable[_Weight]) -> str:
    names: dict[str, dict[str, None]] = {}
    for one in weights:
        names.setdefault(one.of_class, {})[one.name] = None
    return ", ".join(f"{', '.join(of_class)} ({kind})" for kind, of_class in names.items())
