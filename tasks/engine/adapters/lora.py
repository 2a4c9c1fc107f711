"""Step 2's work: resolve the settings to a complete LoRA configuration for the architecture.

LoRA (https://arxiv.org/abs/2106.09685, section 4.1) adds B·A·alpha/r to a linear layer's frozen
weight, with A of shape [r, in] and B of shape [out, r].
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tasks.config import Bias, LoraInit, LoraSettings, Task
from tasks.config.likeness import nearest
from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.out_of_reach import (
    describe_out_of_reach,
    describe_passed_over,
    fused_experts,
)
from tasks.engine.base.task_traits import traits_of
from tasks.errors import UserError
from tasks.records import (
    BaseModelRecord,
    LoraConfigRecord,
    LoraRecord,
    PeftConfigRecord,
    TargetMatches,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_USUAL_RANKS = range(8, 65)
_USUAL_SHARE = 0.01
_INIT = {LoraInit.DEFAULT: True}


def resolve_lora(
    settings: LoraSettings, skeleton: "PreTrainedModel", task: Task = Task.CAUSAL_LM
) -> LoraConfigRecord:
    """Resolve every choice that the settings leave open.

    Args:
        settings: what the user set.
        skeleton: the base model, on the meta device or loaded.
        task: of the base; a head that it adds is put into `modules_to_save`.

    Raises:
        UserError: a name in `target_modules` or `modules_to_save` matches nothing, or a layer that
            LoRA cannot adapt; or the initialization does not work with the rank.
    """
    from peft import LoraConfig

    if settings.init_lora_weights is LoraInit.ORTHOGONAL and settings.r % 2:
        raise UserError(
            f"lora.init_lora_weights is orthogonal, which needs an even rank; lora.r is "
            f"{settings.r}; change one of them"
        )
    traits = traits_of(task)
    head = traits.head_modules(skeleton)
    targets = _resolve_targets(settings.target_modules, skeleton, head)
    fully_trained = list(dict.fromkeys([*settings.modules_to_save, *head]))
    _check_modules_to_save(fully_trained, targets, skeleton)
    _check_adapter_name(settings.adapter_name, fully_trained, skeleton)
    config = LoraConfig(
        task_type=traits.peft_task_type,
        r=settings.r,
        lora_alpha=2 * settings.r if settings.lora_alpha is None else settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=fully_trained or None,
        bias=settings.bias.value,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=_INIT.get(settings.init_lora_weights, settings.init_lora_weights.value),
    )
    return LoraConfigRecord.model_validate(to_json(config))


def describe_lora(
    config: LoraConfigRecord,
    skeleton: "PreTrainedModel",
    base: BaseModelRecord,
    *,
    settings: LoraSettings,
    seed: int,
) -> LoraRecord:
    """Return the record of a resolved configuration: what it selects, and how much it trains.

    Args:
        config: as `resolve_lora` returned it.
        skeleton: the base on the meta device; it is changed.
        base: the loaded base's record.
        settings: what the user set, with the adapter's name.
        seed: of the adapter's initial weights.

    Raises:
        UserError: PEFT refuses the configuration for this base.
    """
    matches = match_targets(list(config.target_modules), adaptable(skeleton))
    unreached = describe_unreached(settings, config, skeleton)
    # By the skeleton: quantized weights have fewer elements than the parameters that they encode.
    num_base = skeleton.num_parameters()
    num_trainable = count_trainable(config, skeleton)
    return LoraRecord(
        base=base,
        adapter_name=settings.adapter_name,
        seed=seed,
        peft_config=config,
        matches=matches,
        num_trainable_parameters=num_trainable,
        num_total_parameters=num_base + num_trainable,
        warnings=(*unreached, *describe_unusual(config, num_trainable, num_base)),
    )


def to_json(config: "PeftConfig") -> dict[str, Any]:
    """Return a PEFT configuration as JSON values, with sets as sorted lists."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))
    return fields


def build_config(record: PeftConfigRecord) -> "PeftConfig":
    """Return PEFT's configuration, of any method, from its record."""
    from peft import get_peft_config

    return get_peft_config(record.to_json())


def match_targets(targets: list[str], modules: Iterable[str]) -> TargetMatches:
    """Return the number of modules that the target names select, by name and by layer."""
    per_target = dict.fromkeys(targets, 0)
    per_layer: Counter[str] = Counter()
    for module in modules:
        matching = [target for target in targets if _matches(module, target)]
        for target in matching:
            per_target[target] += 1
        if matching:
            number = re.search(r"\.(\d+)\.", module)
            per_layer[number.group(1) if number else "outside"] += 1
    return TargetMatches(per_target=per_target, per_layer=dict(per_layer))


def count_trainable(config: LoraConfigRecord, skeleton: "PreTrainedModel") -> int:
    """Return the number of trainable parameters, by injecting into the skeleton, which is changed.

    Raises:
        UserError: PEFT refuses the configuration for this base.
    """
    from peft import inject_adapter_in_model

    probe = build_config(config.model_copy(update={"init_lora_weights": False}))
    skeleton.requires_grad_(requires_grad=False)
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT warns again at the real injection
            model = inject_adapter_in_model(probe, skeleton)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"PEFT can't adapt {type(skeleton).__name__} with these settings of lora: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe_unreached(
    settings: LoraSettings, config: LoraConfigRecord, skeleton: "PreTrainedModel"
) -> tuple[str, ...]:
    """Describe the weights that no target can reach, or that a choice of all layers leaves out.

    Args:
        settings: what the user set.
        config: the resolved configuration.
        skeleton: the base, without adapters.
    """
    from torch import nn

    found = describe_out_of_reach(skeleton)
    targets = sorted(config.target_modules or ())
    takes_all = targets == _all_linear(skeleton, list(config.modules_to_save or ()))
    if settings.target_modules in ("auto", "all-linear") and takes_all:
        output = skeleton.get_output_embeddings()
        passed_over = [
            module
            for name, module in adaptable(skeleton).items()
            if not isinstance(module, nn.Embedding | nn.Linear) and module is not output
            if not any(_matches(name, target) for target in targets)
            # PEFT can't adapt a grouped convolution whose groups do not divide the rank.
            if config.r % getattr(module, "groups", 1) == 0
        ]
        found += describe_passed_over(skeleton, passed_over, str(settings.target_modules))
    return tuple(found)


def describe_unusual(
    config: LoraConfigRecord, num_trainable: int, num_base: int
) -> tuple[str, ...]:
    """Describe what is allowed but unusual, as warnings.

    Args:
        config: the resolved configuration.
        num_trainable: the number of trainable parameters.
        num_base: the number of the base's parameters.
    """
    found = []
    if config.r not in _USUAL_RANKS:
        found.append(f"rank {config.r} is outside the usual 8 to 64")
    share = num_trainable / (num_base + num_trainable)
    if share > _USUAL_SHARE:
        found.append(f"{share:.2%} of all parameters are trainable, above the usual 1 %")
    if config.bias is not Bias.NONE:
        found.append(
            f"bias={config.bias.value!r} trains biases of the base, so disabling the adapter does "
            "not restore the base's answers"
        )
    return tuple(found)


def _matches(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _all_linear(model: "PreTrainedModel", head: list[str]) -> list[str]:
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
    return sorted(known) if known else _all_linear(model, head)


def _resolve_targets(
    wanted: str | list[str], model: "PreTrainedModel", head: list[str]
) -> list[str]:
    if wanted == "auto":
        return _known_targets(model, head)
    if wanted == "all-linear":
        return _all_linear(model, head)
    names = [wanted] if isinstance(wanted, str) else wanted
    modules = adaptable(model)
    unmatched = [t for t in names if not any(_matches(m, t) for m in modules)]
    if unmatched or not names:
        raise _no_match("target_modules", unmatched or names, _all_linear(model, head), model)
    return sorted(set(names))


def _check_modules_to_save(names: list[str], targets: list[str], model: "PreTrainedModel") -> None:
    modules = [name for name, _ in model.named_modules() if name]
    unmatched = [n for n in names if not any(_matches(m, n) for m in modules)]
    if unmatched:
        possible = sorted({m.rpartition(".")[2] for m in modules} - {str(i) for i in range(999)})
        raise _no_match("modules_to_save", unmatched, possible, model)
    adapted = [m for m in adaptable(model) if any(_matches(m, target) for target in targets)]
    both = sorted({n for n in names for m in adapted if any(_matches(p, n) for p in _path(m))})
    if both:
        raise UserError(
            f"lora.modules_to_save {both} contain layers that target_modules adapts; a module is "
            "either adapted or trained fully, so remove it from one of them"
        )


def _check_adapter_name(name: str, fully_trained: list[str], model: "PreTrainedModel") -> None:
    """Refuse a name that PEFT 0.21 would confuse with those of fully trained modules."""
    weights = [
        n
        for n, _ in model.named_parameters()
        if any(_matches(p, w) for p in _path(n) for w in fully_trained)
    ]
    if name in {part for one in [*weights, *fully_trained] for part in one.split(".")}:
        raise UserError(
            f"lora.adapter_name {name!r} is also the name of a module or weight that trains fully "
            f"({', '.join(fully_trained)}), and PEFT would mistake one for the other; use another "
            "name"
        )


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
