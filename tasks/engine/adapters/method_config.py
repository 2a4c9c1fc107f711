"""The configuration of a method other than LoRA for a base, with every choice written out.

PEFT's own class has the fields, and PEFT's own injection into a base without weights says which
layers they select: nothing here knows any method.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.config import LoraSettings, Quantization
from tasks.engine.adapters.lora import describe_unusual, to_json
from tasks.engine.adapters.methods import Method, check_options, find_method, usable_methods
from tasks.engine.adapters.name_patterns import check_patterns, is_pattern
from tasks.engine.adapters.targets import (
    ALL_LINEAR,
    AUTO,
    PEFT_DEFAULT,
    all_linear,
    check_adapter_name,
    check_modules_to_save,
    count_matches,
    is_selected,
    no_peft_default,
)
from tasks.engine.base import load_skeleton, traits_of
from tasks.engine.excerpts import reason, shown
from tasks.errors import UserError
from tasks.records import BaseSource, PeftConfigRecord, ResolvedLora

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

_OF_ALL_METHODS = {"adapter_name", "method", "options", "target_modules", "modules_to_save"}


def resolve_method(settings: LoraSettings, base: BaseSource) -> ResolvedLora:
    """Resolve the settings of a method other than LoRA for a base, by its skeleton.

    Raises:
        UserError: there is no such method or option, a setting is LoRA's alone, a name matches
            nothing, or PEFT refuses the configuration for this base.
    """
    method = find_method(settings.method)
    options = _options(method, settings)
    if base.settings.new_tokens:
        raise UserError(
            f"base_model.new_tokens are trained with lora.method lora only, and it is "
            f"{method.name}; remove one of them"
        )
    check_runs_on(method, base)
    skeleton = load_skeleton(base)
    traits = traits_of(base.settings.task)
    head = traits.head_modules(skeleton)
    fully_trained = list(dict.fromkeys([*settings.modules_to_save, *head]))
    targets = target_names(settings, method, skeleton, head)
    modules = [name for name, _ in skeleton.named_modules()]
    adapted = [m for m in modules if any(is_selected(m, one) for one in targets or ())]
    check_modules_to_save(fully_trained, adapted, skeleton)
    check_adapter_name(settings.adapter_name, fully_trained, skeleton)
    check_patterns(options, modules, "lora.options: ")
    given = {
        "task_type": traits.peft_task_type,
        "target_modules": targets,
        "modules_to_save": fully_trained or None,
        **options,
    }
    config = _build(method, given)
    record, chosen_by, num_trainable = _tried(method, config, skeleton)
    num_base = skeleton.num_parameters()
    return ResolvedLora(
        adapter_name=settings.adapter_name,
        peft_config=record,
        matches=count_matches(chosen_by, [one for names in chosen_by.values() for one in names]),
        num_trainable_parameters=num_trainable or 0,
        num_total_parameters=num_base + (num_trainable or 0),
        chosen_by=chosen_by,
        warnings=_warnings(method, record, num_trainable, num_base),
    )


def _options(method: Method, settings: LoraSettings) -> dict[str, Any]:
    """Return `lora.options`, with those settings of LoRA that the method has by the same name.

    Raises:
        UserError: the method lacks a setting of LoRA that was given, or has no such option.
    """
    defaults, given = LoraSettings().model_dump(mode="json"), settings.model_dump(mode="json")
    changed = {
        name: value
        for name, value in given.items()
        if name not in _OF_ALL_METHODS and value != defaults[name]
    }
    if lacking := [name for name in changed if name not in method.options]:
        raise UserError(
            f"lora.{lacking[0]} is a setting of LoRA, which {method.name} does not have; remove "
            f"it; options of {method.name}: {', '.join(method.options)}"
        )
    if twice := sorted(changed.keys() & settings.options.keys()):
        raise UserError(f"lora.{twice[0]} and lora.options.{twice[0]} are both set; remove one")
    options = {**changed, **settings.options}
    check_options(method, options)
    return options


def check_runs_on(method: Method, base: BaseSource) -> None:
    """Check that PEFT can compute a method on weights as the base has them.

    Raises:
        UserError: it can't, in half precision or on quantized layers.
    """
    if base.dtype != "float32" and not method.takes_half_precision:
        raise UserError(
            f"the base's weights are {base.dtype}, and PEFT can compute {method.name} in float32 "
            "only; set base_model.dtype to float32"
        )
    quantization = base.settings.quantization
    if quantization is Quantization.NONE or method.takes_quantized_layers:
        return
    able = [n for n in usable_methods() if find_method(n).takes_quantized_layers]
    raise UserError(
        f"base_model.quantization is {quantization.value}, but PEFT can't adapt quantized layers "
        f"by {method.name}; use none, or one of the methods {', '.join(able)}"
    )


def target_names(
    settings: LoraSettings, method: Method, skeleton: "PreTrainedModel", head: list[str]
) -> list[str] | None:
    """Return the target names; None for those that PEFT has for the method and architecture.

    Raises:
        UserError: one is a regular expression or matches nothing, or PEFT has no default.
    """
    if settings.target_modules in (AUTO, PEFT_DEFAULT):
        known = getattr(method.tuner_class, "target_module_mapping", None)
        if known is None or skeleton.config.model_type in known:
            return None
        if settings.target_modules == PEFT_DEFAULT:
            raise no_peft_default(method.name, skeleton)
        return all_linear(skeleton, head, experts=False)
    if settings.target_modules == ALL_LINEAR:
        return all_linear(skeleton, head, experts=False)
    wanted = settings.target_modules
    if isinstance(wanted, str) and is_pattern(wanted):
        raise UserError(
            f"lora.target_modules is the regular expression {shown(wanted)}, which is for LoRA "
            f"only, and lora.method is {method.name}; list the names of layers, or use all-linear"
        )
    names = [wanted] if isinstance(wanted, str) else wanted
    modules = [name for name, _ in skeleton.named_modules() if name]
    unmatched = [t for t in names if not any(is_selected(m, t) for m in modules)]
    if unmatched or not names:
        possible = ", ".join(all_linear(skeleton, head, experts=False))
        raise UserError(
            f"lora.target_modules {unmatched or names} match nothing in "
            f"{type(skeleton).__name__}; linear layers: {possible}"
        )
    return sorted(set(names))


def _build(method: Method, given: dict[str, Any]) -> "PeftConfig":
    possible = {name: value for name, value in given.items() if name in method.fields}
    try:
        return method.config_class(**possible)
    except (ValueError, TypeError) as error:
        raise UserError(f"PEFT refuses these settings of {method.name}: {reason(error)}") from error


def _tried(
    method: Method, config: "PeftConfig", skeleton: "PreTrainedModel"
) -> tuple[PeftConfigRecord, dict[str, tuple[str, ...]], int | None]:
    """Inject into a copy of the skeleton; return the configuration, what it selects, and the count.

    The count is None if the method derives its weights from the base's, which a skeleton lacks.

    Raises:
        UserError: PEFT refuses the configuration for this base, or a name selects nothing.
    """
    used = copy.deepcopy(config)
    try:
        model = injected_skeleton(used, partial(copy.deepcopy, skeleton))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"PEFT can't adapt {type(skeleton).__name__} by {method.name} with these settings: "
            f"{reason(error)}"
        ) from error
    # What was left open was decided by PEFT, in the configuration that was used.
    before, after = to_json(config), to_json(used)
    fields = {k: after[k] if before[k] is None else before[k] for k in before}
    record = PeftConfigRecord.model_validate(fields)
    names = list(record.target_modules)
    if model is None:
        modules = [name for name, _ in skeleton.named_modules()]
        return record, _chosen(names, modules), None
    chosen = _chosen(names, adapted_modules(model))
    if unused := [name for name, modules in chosen.items() if not modules]:
        raise UserError(
            f"lora.target_modules {unused} select no layer that {method.name} adapts with these "
            "settings; remove them"
        )
    return record, chosen, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _chosen(targets: list[str], modules: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the modules that each target name selects."""
    return {one: tuple(m for m in modules if is_selected(m, one)) for one in targets}


def injected_skeleton(
    config: "PeftConfig", skeleton: Callable[[], "PreTrainedModel"]
) -> "nn.Module | None":
    """Return a skeleton with the adapter; None if that needs the base's weights.

    Args:
        config: of the adapter; what it leaves open is decided by PEFT, and written into it.
        skeleton: returns a model on the meta device, which is changed.

    Raises:
        ValueError: PEFT refuses the configuration for this base.
    """
    import torch
    from peft import inject_adapter_in_model

    # First all on the meta device, for which weights of any size need no memory. Some methods of
    # PEFT 0.21 compute fixed matrices of their own, for which a device with memory is needed.
    for device in ("meta", "cpu"):
        model = skeleton().requires_grad_(requires_grad=False)
        try:
            with torch.device(device), warnings.catch_warnings(action="ignore"):
                injected: nn.Module = inject_adapter_in_model(config, model)
                return injected
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise ValueError(reason(error)) from error
    return None


def adapted_modules(model: "nn.Module") -> list[str]:
    """Return the names of the modules that PEFT replaced by its own layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _warnings(
    method: Method, record: PeftConfigRecord, num_trainable: int | None, num_base: int
) -> tuple[str, ...]:
    unknown = (
        f"{method.name} derives its weights from the base's, so how many it trains is only known "
        "once the base is loaded"
    )
    unusual = describe_unusual(record, num_trainable or 0, num_base)
    return (*([unknown] if num_trainable is None else ()), *unusual)
