"""The LoRA configuration for a base, with every choice written out.

LoRA (https://arxiv.org/abs/2106.09685, section 4.1) adds B·A·alpha/r to a linear layer's frozen
weight, with A of shape [r, in] and B of shape [out, r].
"""

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.config import Bias, LoraInit, LoraSettings, Quantization, Task
from tasks.config.lora import DEFAULT_RANK
from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.name_patterns import is_pattern
from tasks.engine.adapters.out_of_reach import (
    describe_frozen_experts,
    describe_out_of_reach,
    describe_passed_over,
    note_frozen_routers,
)
from tasks.engine.adapters.parameter_limits import check_parameters
from tasks.engine.adapters.patterns import fused_patterns, reached_by_values, resolved_layers
from tasks.engine.adapters.plain_lora import ALTERS_BASE
from tasks.engine.adapters.selection import Selection, select_targets
from tasks.engine.adapters.targets import (
    ALL_LINEAR,
    AUTO,
    all_linear,
    check_adapter_name,
    check_modules_to_save,
    count_matches,
    is_selected,
)
from tasks.engine.base import load_skeleton, new_token_ids, traits_of
from tasks.engine.excerpts import listed
from tasks.errors import UserError
from tasks.records import BaseSource, LoraConfigRecord, PeftConfigRecord, ResolvedLora

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_USUAL_RANKS = range(8, 65)
_USUAL_SHARE = 0.01
_INIT = {LoraInit.DEFAULT: True}
"""PEFT's values, where they are not the settings' own."""


def resolve_lora(settings: LoraSettings, base: BaseSource) -> ResolvedLora:
    """Resolve the settings for a base, by its skeleton, which has no weights.

    Raises:
        UserError: a name or pattern matches nothing, the settings contradict each other, or PEFT
            refuses them for this base.
    """
    skeleton = load_skeleton(base)
    _check_start(settings, base)
    selection = select(settings, skeleton, base.settings.task)
    check_parameters(settings, [*selection.target_parameters], skeleton, base.settings)
    new_tokens = new_token_ids(base)
    config = resolve_config(settings, selection, skeleton, base.settings.task, new_tokens)
    reached = {**selection.patterns, **reached_by_values(settings, selection.adapted)}
    unreached = describe_unreached(settings, config, selection, skeleton)
    notes = note_frozen_routers(skeleton, selection.adapted)
    # By the skeleton: quantized weights have fewer elements than the parameters that they encode.
    num_base = skeleton.num_parameters()
    num_trainable = count_trainable(config, skeleton)
    return ResolvedLora(
        adapter_name=settings.adapter_name,
        peft_config=config,
        matches=count_matches(selection.reached, selection.adapted),
        num_trainable_parameters=num_trainable,
        num_total_parameters=num_base + num_trainable,
        warnings=(*unreached, *describe_unusual(config, num_trainable, num_base)),
        adapted=resolved_layers(config.to_json(), selection.adapted),
        chosen_by=selection.reached,
        reached=reached,
        notes=tuple(notes),
    )


def _check_start(settings: LoraSettings, base: BaseSource) -> None:
    """Refuse initializations that rounding would make useless, before anything is trained.

    Raises:
        UserError: the base is quantized, or not in float32, and the initialization needs that.
    """
    start, quantization = settings.init_lora_weights, base.settings.quantization
    if start.value in ALTERS_BASE and quantization is not Quantization.NONE:
        raise UserError(
            f"lora.init_lora_weights is {start.value}, which takes the adapter's start out of the "
            f"base's weights, and base_model.quantization is {quantization.value}, which would "
            "round the rest; change one of them"
        )
    if base.dtype == "float32" or not (start.value in ALTERS_BASE or start is LoraInit.ORTHOGONAL):
        return
    # On a SmolLM2-135M in bfloat16, logits of up to 41 differed by 7.8 at the start with
    # orthogonal, and by 2.4 when the trained pissa was put on a fresh base.
    why = (
        "whose A and B cancel in float32 only"
        if start is LoraInit.ORTHOGONAL
        else "which takes the adapter's start out of the base's weights and would round the rest"
    )
    raise UserError(
        f"lora.init_lora_weights is {start.value}, {why}, but the base's weights are {base.dtype}; "
        "set base_model.dtype to float32, or init_lora_weights to default or gaussian"
    )


def select(
    settings: LoraSettings, skeleton: "PreTrainedModel", task: Task = Task.CAUSAL_LM
) -> Selection:
    """Return what the settings select in a base; see `select_targets`."""
    return select_targets(settings, skeleton, traits_of(task).head_modules(skeleton))


def resolve_config(
    settings: LoraSettings,
    selection: Selection,
    skeleton: "PreTrainedModel",
    task: Task = Task.CAUSAL_LM,
    new_tokens: Sequence[int] = (),
) -> LoraConfigRecord:
    """Resolve every choice that the settings leave open.

    Args:
        settings: what the user set.
        selection: what they select in the base.
        skeleton: the base model, on the meta device or loaded.
        task: of the base; a head that it adds is put into `modules_to_save`.
        new_tokens: the numbers of tokens whose embeddings train.

    Raises:
        UserError: a name in `modules_to_save` matches nothing or something adapted, or settings
            exclude each other.
    """
    from peft import LoraConfig

    traits = traits_of(task)
    rank = settings.r or DEFAULT_RANK
    ranks = [rank, *settings.rank_pattern.values()]
    if settings.init_lora_weights is LoraInit.ORTHOGONAL and any(r % 2 for r in ranks):
        raise UserError(
            f"lora.init_lora_weights is orthogonal, which needs an even rank; lora.r is "
            f"{rank}{_listed_ranks(settings)}; change one of them"
        )
    check_parameters(settings, [*selection.target_parameters], skeleton)
    head = traits.head_modules(skeleton)
    fully_trained = list(dict.fromkeys([*settings.modules_to_save, *head]))
    check_modules_to_save(fully_trained, selection.adapted, skeleton)
    rows = trained_rows(skeleton, new_tokens, fully_trained)
    if both := sorted({*(rows or ())} & {*selection.adapted}):
        raise UserError(
            f"lora.target_modules adapt {listed(both)}, of which base_model.new_tokens train rows, "
            "and PEFT can't do both; leave it out of the targets (lora.exclude_modules), or train "
            "it fully by lora.modules_to_save instead"
        )
    check_adapter_name(settings.adapter_name, fully_trained, skeleton)
    alpha = 2 * rank if settings.lora_alpha is None else settings.lora_alpha
    excluded = settings.exclude_modules
    is_name = isinstance(excluded, str) and not is_pattern(excluded)
    config = LoraConfig(
        task_type=traits.peft_task_type,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=selection.target_modules,
        target_parameters=[*selection.target_parameters] or None,
        # PEFT takes a string for a regular expression.
        exclude_modules=[excluded] if is_name else excluded,
        layers_to_transform=settings.layers_to_transform,
        modules_to_save=fully_trained or None,
        bias=settings.bias.value,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        trainable_token_indices=rows,
        init_lora_weights=_INIT.get(settings.init_lora_weights, settings.init_lora_weights.value),
        **fused_patterns(settings, selection.num_fused, selection.target_parameters, rank, alpha),
    )
    return LoraConfigRecord.model_validate(to_json(config))


def trained_rows(
    skeleton: "PreTrainedModel", new_tokens: Sequence[int], fully_trained: list[str]
) -> dict[str, list[int]] | None:
    """Return the rows of the embeddings that train, by module; None if there are no new tokens.

    PEFT trains the output layer's rows with the input's where the two are tied. Otherwise they are
    named, as a new token could be read but never written. Modules that train fully have theirs.
    """
    if not new_tokens:
        return None
    first, last = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    is_tied = last is None or last.weight is first.weight
    ends = [first] if is_tied else [first, last]
    names = [name for name, module in skeleton.named_modules() if module in ends]
    rows = {n: list(new_tokens) for n in names if not any(is_selected(n, f) for f in fully_trained)}
    return rows or None


def _listed_ranks(settings: LoraSettings) -> str:
    return f", lora.rank_pattern {settings.rank_pattern}" if settings.rank_pattern else ""


def to_json(config: "PeftConfig") -> dict[str, Any]:
    """Return a PEFT configuration as JSON values, with sets as sorted lists."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))
    return fields


def build_config(record: PeftConfigRecord) -> "PeftConfig":
    """Return PEFT's configuration, of any method, from its record."""
    from peft import get_peft_config

    return get_peft_config(record.to_json())


def count_trainable(config: LoraConfigRecord, skeleton: "PreTrainedModel") -> int:
    """Return the number of trainable parameters, by injecting into the skeleton, which is changed.

    Raises:
        UserError: PEFT refuses the configuration for this base.
    """
    import torch
    from peft import inject_adapter_in_model

    probe = build_config(config.model_copy(update={"init_lora_weights": False}))
    skeleton.requires_grad_(requires_grad=False)
    try:
        # PEFT creates A and B on the CPU, whatever their size, and warns again when it really does.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = inject_adapter_in_model(probe, skeleton)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"PEFT can't adapt {type(skeleton).__name__} with these settings of lora: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe_unreached(
    settings: LoraSettings,
    config: LoraConfigRecord,
    selection: Selection,
    skeleton: "PreTrainedModel",
) -> tuple[str, ...]:
    """Describe the weights that no target can reach, or that a choice of layers leaves out.

    Args:
        settings: what the user set.
        config: the resolved configuration.
        selection: what is adapted.
        skeleton: the base, without adapters.
    """
    from torch import nn

    found = describe_frozen_experts(skeleton, selection.adapted)
    found += describe_out_of_reach(skeleton, selection.adapted)
    targets = sorted(config.target_modules or ())
    takes_all = targets == all_linear(skeleton, list(config.modules_to_save or ()), experts=False)
    if settings.target_modules in (AUTO, ALL_LINEAR) and takes_all:
        output = skeleton.get_output_embeddings()
        passed_over = [
            module
            for name, module in adaptable(skeleton).items()
            if not isinstance(module, nn.Embedding | nn.Linear) and module is not output
            if not any(is_selected(name, target) for target in targets)
            # PEFT can't adapt a grouped convolution whose groups do not divide the rank.
            if config.r % getattr(module, "groups", 1) == 0
        ]
        found += describe_passed_over(skeleton, passed_over, str(settings.target_modules))
    return tuple(found)


def describe_unusual(
    config: PeftConfigRecord, num_trainable: int, num_base: int
) -> tuple[str, ...]:
    """Describe what is allowed but unusual, as warnings.

    Args:
        config: the resolved configuration, of LoRA or another method.
        num_trainable: the number of trainable parameters.
        num_base: the number of the base's parameters.
    """
    found = []
    if isinstance(config, LoraConfigRecord) and config.r not in _USUAL_RANKS:
        found.append(f"rank {config.r} is outside the usual 8 to 64")
    share = num_trainable / (num_base + num_trainable)
    if share > _USUAL_SHARE:
        found.append(f"{share:.2%} of all parameters are trainable, above the usual 1 %")
    bias = getattr(config, "bias", None)
    if bias not in (None, False, Bias.NONE):
        found.append(
            f"bias={str(bias)!r} trains biases of the base, so disabling the adapter does "
            "not restore the base's answers"
        )
    return tuple(found)
