"""Which modules a LoRA configuration selects: `target_modules` and `modules_to_save`, by name.

As in PEFT, a name selects each module whose dotted name is it or ends with it.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.config.likeness import nearest
from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.out_of_reach import fused_experts
from tasks.errors import UserError
from tasks.records import TargetMatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_targets(
    wanted: str | list[str], model: "PreTrainedModel", head: list[str]
) -> list[str]:
    """Return the target names that a setting of `target_modules` stands for.

    Args:
        wanted: `auto`, `all-linear`, or names.
        model: the base.
        head: the modules that the task adds to it, which are trained fully and never targets.

    Raises:
        UserError: there is no name, or one matches no layer that LoRA can adapt.
    """
    if wanted == "auto":
        return _known_targets(model, head)
    if wanted == "all-linear":
        return all_linear(model, head)
    names = [wanted] if isinstance(wanted, str) else wanted
    modules = adaptable(model)
    unmatched = [t for t in names if not any(is_selected(m, t) for m in modules)]
    if unmatched or not names:
        raise _no_match("target_modules", unmatched or names, all_linear(model, head), model)
    return sorted(set(names))


def check_modules_to_save(names: list[str], targets: list[str], model: "PreTrainedModel") -> None:
    """Check the modules that are trained fully.

    Raises:
        UserError: a name matches nothing, or a module that contains a target.
    """
    modules = [name for name, _ in model.named_modules() if name]
    unmatched = [n for n in names if not any(is_selected(m, n) for m in modules)]
    if unmatched:
        # The last parts of dotted names, without the numbers of layers in lists.
        possible = sorted({m.rpartition(".")[2] for m in modules} - {str(i) for i in range(999)})
        raise _no_match("modules_to_save", unmatched, possible, model)
    adapted = [m for m in adaptable(model) if any(is_selected(m, target) for target in targets)]
    both = sorted({n for n in names for m in adapted if any(is_selected(p, n) for p in _path(m))})
    if both:
        raise UserError(
            f"lora.modules_to_save {both} contain layers that target_modules adapts; a module is "
            "either adapted or trained fully, so remove it from one of them"
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


def match_targets(targets: list[str], modules: Iterable[str]) -> TargetMatches:
    """Return the number of modules that the target names select, by name and by layer."""
    per_target = dict.fromkeys(targets, 0)
    per_layer: Counter[str] = Counter()
    for module in modules:
        matching = [target for target in targets if is_selected(module, target)]
        for target in matching:
            per_target[target] += 1
        if matching:
            number = re.search(r"\.(\d+)\.", module)
            per_layer[number.group(1) if number else "outside"] += 1
    return TargetMatches(per_target=per_target, per_layer=dict(per_layer))


def is_selected(module: str, name: str) -> bool:
    """Return whether a name selects the module with this dotted name."""
    return module == name or module.endswith(f".{name}")


def all_linear(model: "PreTrainedModel", head: list[str]) -> list[str]:
    """Return the names of all linear layers except the output layer and those of `head`.

    QLoRA found that all linear layers have to be adapted to match full fine-tuning
    (https://arxiv.org/abs/2305.14314, section 4). PEFT matches names by their end, so a name that
    `head` has, too, is qualified by its parent's.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = {
        tuple(name.split("."))
        for name, module in adaptable(model).items()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    of_head = {path for path in linear if path[0] in head}
    taken = {path[-1] for path in of_head}
    return sorted(
        {".".join(path[-2:] if path[-1] in taken else path[-1:]) for path in linear - of_head}
    )


def _known_targets(model: "PreTrainedModel", head: list[str]) -> list[str]:
    """Return PEFT's default targets for this architecture; all linear layers if it has none."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    return sorted(known) if known else all_linear(model, head)


def _path(module: str) -> list[str]:
    """Return the dotted names of a module and of all modules that contain it."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _no_match(
    field: str, unmatched: list[str], possible: list[str], model: "PreTrainedModel"
) -> UserError:
    near = [match for name in unmatched if (match := nearest(name, possible))]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    experts = fused_experts(model)
    fused = f"; the experts are fused and can't be adapted yet: {experts}" if experts else ""
    return UserError(
        f"lora.{field} {unmatched} match nothing in {type(model).__name__}{hint}; "
        f"possible: {', '.join(possible)}{fused}"
    )
