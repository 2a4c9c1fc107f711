"""The names that `target_modules` can have in a base, and those of `modules_to_save`.

As in PEFT, a name selects each module whose dotted name is it or ends with it.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from tasks.config.likeness import nearest
from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.experts import expert_parameters, routers
from tasks.errors import UserError
from tasks.records import TargetMatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = "experts"
"""The name in `target_modules` of all fused experts, whatever their modules are called."""
AUTO, ALL_LINEAR, PEFT_DEFAULT = "auto", "all-linear", "peft-default"
"""What `target_modules` can be instead of names or a regular expression."""


def check_modules_to_save(names: list[str], adapted: list[str], model: "PreTrainedModel") -> None:
    """Check the modules that are trained fully.

    Args:
        names: of the modules.
        adapted: the dotted names of all that is adapted.
        model: the base.

    Raises:
        UserError: a name matches nothing, or a module that contains a target.
    """
    modules = [name for name, _ in model.named_modules() if name]
    unmatched = [n for n in names if not any(is_selected(m, n) for m in modules)]
    if unmatched:
        # The last parts of dotted names, without the numbers of layers in lists.
        possible = sorted({m.rpartition(".")[2] for m in modules} - {str(i) for i in range(999)})
        raise no_match("modules_to_save", unmatched, possible, model)
    both = sorted({n for n in names for m in adapted if any(is_selected(p, n) for p in _path(m))})
    if both:
        raise UserError(
            f"lora.modules_to_save {both} contain layers that target_modules adapts; a module is "
            "either adapted or trained fully, so remove it from one of them, or name it in "
            "lora.exclude_modules"
        )


def check_adapter_name(name: str, fully_trained: list[str], model: "PreTrainedModel") -> None:
    """Check that PEFT 0.21 would not confuse the adapter's name with those of other modules.

    Raises:
        UserError: a fully trained module or one of its weights has that name.
    """
    weights = [
        n
        for n, _ in model.named_parameters()
        if any(is_selected(p, w) for p in _path(n) for w in fully_trained)
    ]
    if name in {part for one in [*weights, *fully_trained] for part in one.split(".")}:
        raise UserError(
            f"lora.adapter_name {name!r} is also the name of a module or weight that trains fully "
            f"({', '.join(fully_trained)}), and PEFT would mistake one for the other; use another "
            "name"
        )


def count_matches(
    chosen_by: Mapping[str, Collection[str]], adapted: Collection[str]
) -> TargetMatches:
    """Return how many modules and parameters are adapted, by what chose them and by layer.

    Args:
        chosen_by: dotted names, by the target name or pattern that selects them.
        adapted: the dotted names of what is adapted.
    """
    per_layer: Counter[str] = Counter()
    for name in adapted:
        number = re.search(r"\.(\d+)\.", name)
        per_layer[number.group(1) if number else "outside"] += 1
    per_target = {one: len({*names} & {*adapted}) for one, names in chosen_by.items()}
    return TargetMatches(per_target=per_target, per_layer=dict(per_layer))


def is_selected(module: str, name: str) -> bool:
    """Return whether a name selects the module with this dotted name."""
    return module == name or module.endswith(f".{name}")


def all_linear(model: "PreTrainedModel", head: list[str], *, experts: bool = True) -> list[str]:
    """Return the names of all linear layers except the output layer, routers, and those of `head`.

    QLoRA found that all linear layers have to be adapted to match full fine-tuning
    (https://arxiv.org/abs/2305.14314, section 4). PEFT matches names by their end, so a name that
    a layer has which is left out, too, is qualified by its parent's.

    Args:
        model: the base.
        head: the modules that the task adds to it.
        experts: whether to include fused experts, as `experts`.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = {
        tuple(name.split("."))
        for name, module in adaptable(model).items()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    of_routers = {tuple(name.split(".")) for name in routers(model)}
    left_out = {path for path in linear if path[0] in head or path in of_routers}
    taken = {path[-1] for path in left_out}
    names = {".".join(path[-2:] if path[-1] in taken else path[-1:]) for path in linear - left_out}
    return sorted(names | ({EXPERTS} if experts and expert_parameters(model) else set()))


def peft_default(model: "PreTrainedModel") -> list[str]:
    """Return the names of PEFT's default targets for LoRA on this architecture.

    Raises:
        UserError: PEFT has none for it.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if known is None:
        raise no_peft_default("lora", model)
    return sorted(known)


def no_peft_default(method: str, model: "PreTrainedModel") -> UserError:
    """Return the error for `peft-default` where PEFT has no default targets."""
    return UserError(
        f"lora.target_modules is {PEFT_DEFAULT}, and PEFT has no default targets of {method} for "
        f"{model.config.model_type}; use auto or all-linear, or list the names of layers"
    )


def _path(module: str) -> list[str]:
    """Return the dotted names of a module and of all modules that contain it."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def no_match(
    field: str, unmatched: list[str], possible: list[str], model: "PreTrainedModel", rule: str = ""
) -> UserError:
    """Return the error for names in a setting of `lora` that match nothing.

    Args:
        field: the setting.
        unmatched: the names.
        possible: the names that match something.
        model: the base.
        rule: what is matched, in place of the possible names.
    """
    near = [match for name in unmatched if (match := nearest(name, possible))]
    hint = f"; did you mean {', '.join(near)}?" if near and not rule else ""
    return UserError(
        f"lora.{field} {unmatched} match nothing in {type(model).__name__}{hint}; "
        + (rule or f"possible: {', '.join(possible)}")
    )
