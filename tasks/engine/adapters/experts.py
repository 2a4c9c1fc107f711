"""A mixture's experts and routers (https://arxiv.org/abs/2101.03961, section 2), by their names.

transformers 5 has all experts of a layer in three-dimensional parameters [experts, out, in], where
transformers 4 had a linear layer per expert and matrix. PEFT adapts a parameter through
`target_parameters`, and knows which of the former layers were fused into which parameter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_FUSED = 3
"""The number of dimensions of a parameter that has one matrix per expert."""

Selects = Callable[[str], bool]
"""Whether a name or pattern selects what has this dotted name."""


@dataclass(frozen=True)
class ExpertParameter:
    """A parameter with one matrix per expert."""

    name: str
    """Such as `model.layers.0.mlp.experts.gate_up_proj`."""
    of_class: str
    """The class of the module that it is in."""
    num_elements: int
    formerly: tuple[str, ...]
    """The names in transformers 4 of the layers that it replaces, such as `w1` and `w3`."""
    fused_from: int
    """The number of matrices of one expert that are concatenated in it, as far as PEFT knows."""

    @property
    def module(self) -> str:
        """The dotted name of the module that it is in."""
        return self.name.rpartition(".")[0]


def expert_parameters(model: "PreTrainedModel") -> list[ExpertParameter]:
    """Return the fused parameters of the model's experts, in the order of its modules."""
    former, fused = _peft_names(model)
    found = []
    for path, module in model.named_modules():
        for name, parameter in _own_parameters(module):
            if not _is_fused(name, parameter) or not path:
                continue
            found.append(
                ExpertParameter(
                    f"{path}.{name}",
                    type(module).__name__,
                    parameter.numel(),
                    tuple(old for old, new in former.items() if new == name),
                    len(fused.get(name, ())) or 1,
                )
            )
    return found


def routers(model: "PreTrainedModel") -> dict[str, str]:
    """Return the weights' names of the routers beside fused experts, by the modules' names."""
    mixtures = {one.module.rpartition(".")[0] for one in expert_parameters(model)}
    return {
        path: f"{path}.weight"
        for path, module in model.named_modules()
        if is_router(path, module) and path.rpartition(".")[0] in mixtures
        if any(name == "weight" for name, _ in _own_parameters(module))
    }


def is_router(path: str, module: "nn.Module") -> bool:
    """Return whether a module chooses among experts, judged by its name and class."""
    return path.rpartition(".")[2] in ("gate", "router") or "Router" in type(module).__name__


def selected_parameters(
    selects: Selects, experts: list[ExpertParameter], of_routers: dict[str, str]
) -> dict[str, frozenset[str]]:
    """Return the parameters of experts and routers that a name or pattern selects.

    A parameter is selected by its own name, by its module's, or by the name that one of its layers
    had in transformers 4.

    Args:
        selects: the name or pattern.
        experts: of the model.
        of_routers: of the model.

    Returns:
        By the parameter's name, which of its former layers are selected; none if the parameter is
        selected as it is.
    """
    found: dict[str, frozenset[str]] = {}
    for one in experts:
        if selects(one.name):
            found[one.name] = frozenset()
        elif selects(one.module):
            found[one.name] = frozenset(one.formerly)
        elif old := frozenset(old for old in one.formerly if selects(f"{one.module}.{old}")):
            found[one.name] = old
    for module, weight in of_routers.items():
        if selects(module) or selects(weight):
            found[weight] = frozenset()
    return found


def num_fused(one: ExpertParameter, former: frozenset[str]) -> int:
    """Return how many layers an expert parameter is adapted as: the rank is that many times r.

    As in PEFT, a parameter that is chosen by the names of the layers that were fused into it has a
    rank of r for each of them, and one that is chosen by its own name has rank r.

    Raises:
        UserError: some of the layers are missing, which can't be adapted alone.
    """
    if not former or one.fused_from == 1:
        return 1
    if missing := sorted(set(one.formerly) - former):
        raise UserError(
            f"lora.target_modules has {', '.join(sorted(former))} but not {', '.join(missing)}: "
            f"they are fused into one parameter, {one.name}, which is adapted for both or not at "
            f"all; add {', '.join(missing)}, or name experts"
        )
    return one.fused_from


def _own_parameters(module: "nn.Module") -> Iterator[tuple[str, "nn.Parameter"]]:
    yield from module.named_parameters(recurse=False)


def _is_fused(name: str, parameter: "nn.Parameter") -> bool:
    # A depthwise convolution's weight has a size of 1.
    is_matrices = parameter.ndim == _FUSED and min(parameter.shape) > 1
    return is_matrices and not name.endswith("bias")


def _peft_names(model: "PreTrainedModel") -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return PEFT's names: from former layers to parameters, and from those to what is fused.

    PEFT 0.21 applies its map for Qwen2-MoE to the architectures that resemble it, but not to
    Qwen2-MoE itself.
    """
    from peft.utils import transformers_weight_conversion as conversion

    kind = str(model.config.model_type)
    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(kind, kind)  # noqa: SLF001
    former = conversion._MOE_TARGET_MODULE_MAPPING.get(family, {})  # noqa: SLF001
    fused = conversion._MOE_FUSED_TARGETS.get(family, {})  # noqa: SLF001
    return former, fused
