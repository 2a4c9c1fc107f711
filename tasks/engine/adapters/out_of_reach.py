"""The weights of a base that stay frozen because no layer that LoRA adapts has them.

transformers 5 keeps a mixture's experts as three-dimensional parameters of one module, and a state
space model its transitions as a parameter of the mixer: neither is a layer with a name to target.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.engine.adapters.adaptable import adaptable

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_WORTH_SAYING = 0.01
_FUSED = 3
"""Dimensions of a parameter that has one matrix for each expert."""


@dataclass(frozen=True)
class _Weight:
    name: str
    """The parameter's, or the layer's where it is just called `weight`."""
    of_class: str
    parameter: "nn.Parameter"

    @property
    def is_fused(self) -> bool:
        """Whether there is a matrix for each expert; a convolution's weight has one size of 1."""
        return self.parameter.ndim == _FUSED and min(self.parameter.shape) > 1


def fused_experts(model: "PreTrainedModel") -> str:
    """Name the experts' fused parameters with the modules that have them; empty without any."""
    return _named(one for one in _out_of_reach(model) if one.is_fused)


def describe_out_of_reach(model: "PreTrainedModel") -> list[str]:
    """Describe the weights that no target reaches, with their share of all, where there are any."""
    found = list(_out_of_reach(model))
    share = sum(one.parameter.numel() for one in found) / model.num_parameters()
    experts = "; fused experts can't be adapted yet" if fused_experts(model) else ""
    if share < _WORTH_SAYING and not experts:
        return []
    shown = f"{share:.2%}" if share < _WORTH_SAYING else f"{share:.0%}"
    remark = f"{shown} of the base's weights stay frozen whatever lora.target_modules names: "
    return [f"{remark}{_named(found)}{experts}"]


def describe_passed_over(
    model: "PreTrainedModel", passed_over: Collection["nn.Module"], how: str
) -> list[str]:
    """Describe the layers that a choice of all layers did not take, with their share.

    Args:
        model: the base.
        passed_over: its layers that could be adapted, but for embeddings and output layers.
        how: they were chosen, such as `all-linear`.
    """
    sizes = {m: sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in passed_over}
    share = sum(sizes.values()) / model.num_parameters()
    if share < _WORTH_SAYING:
        return []
    names = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if m in sizes})
    remark = f"{share:.0%} of the base's weights are in layers that {how} does not take; to adapt "
    return [f"{remark}them, name them in lora.target_modules: {', '.join(names)}"]


def _out_of_reach(model: "PreTrainedModel") -> Iterator[_Weight]:
    """Yield the matrices that are parameters of no layer that LoRA adapts.

    But for routers, which are meant to stay as they are, and biases of several experts.
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
