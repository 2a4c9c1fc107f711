"""The configuration of an adapter that begins as another one.

The source's own configuration decides rank, targets and method, and PEFT's injection into a base
without weights says which layers that is. What the run's settings say of it has to agree.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.config import LoraSettings
from tasks.engine.adapters import lora
from tasks.engine.adapters.compatibility import check_base, check_fit
from tasks.engine.adapters.continued_settings import Adapted, differences
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.adapters.injection import adapted_layers
from tasks.engine.adapters.method_config import (
    adapted_modules,
    check_runs_on,
    injected_skeleton,
)
from tasks.engine.adapters.methods import LORA, find_method
from tasks.engine.adapters.name_patterns import is_pattern
from tasks.engine.adapters.source_adapters import folder_of
from tasks.engine.adapters.targets import check_adapter_name, count_matches, is_selected
from tasks.engine.base import load_skeleton, new_token_ids, traits_of
from tasks.errors import UserError
from tasks.records import (
    BaseSource,
    LoraConfigRecord,
    PeftConfigRecord,
    ResolvedLora,
    SourceRecord,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_continued(
    settings: LoraSettings, source: SourceRecord, base: BaseSource
) -> ResolvedLora:
    """Resolve the configuration of an adapter that begins as another one.

    Args:
        settings: what the user set of it, beside the source.
        source: the adapter to begin with.
        base: the base.

    Raises:
        UserError: the source is for another base, changes the base's own weights, or does not fit;
            or a setting is not as the source has it.
    """
    folder = folder_of(source)
    method = find_method(folder.method, f"lora.from {source.given}: peft_type")
    check_runs_on(method, base)
    warnings = [*check_base(folder, base), *_loaded_otherwise(folder, base)]
    _check_biases(folder)
    skeleton = load_skeleton(base)
    _check_new_tokens(folder, skeleton, base)
    _check_task(folder, base)
    check_fit(folder, skeleton)
    found = _adapted(folder, skeleton, settings, base)
    if other := [*differences(settings, found, base, skeleton)]:
        raise UserError(
            f"lora.from {source.given} begins with an adapter that the other settings of lora do "
            f"not fit: {'; '.join(other)}; remove these settings, so that they are taken "
            "from it, or set them as it has them"
        )
    check_adapter_name(settings.adapter_name, list(found.config.modules_to_save or ()), skeleton)
    num_base = skeleton.num_parameters()
    unusual = lora.describe_unusual(found.config, found.num_trainable, num_base)
    return ResolvedLora(
        adapter_name=settings.adapter_name,
        peft_config=found.config,
        matches=count_matches(found.chosen_by, found.names),
        num_trainable_parameters=found.num_trainable,
        num_total_parameters=num_base + found.num_trainable,
        warnings=(*warnings, *unusual),
        adapted=found.layers,
        chosen_by=found.chosen_by,
        notes=(f"begins with {source.text}",),
        source=source,
    )


def _adapted(
    folder: AdapterFolder, skeleton: "PreTrainedModel", settings: LoraSettings, base: BaseSource
) -> Adapted:
    """Return what a source adapts, by injecting its configuration into a copy of the skeleton."""
    used: Any = copy.deepcopy(folder.config)
    used.inference_mode = False
    used.task_type = traits_of(base.settings.task).peft_task_type
    is_lora = folder.method == LORA
    if is_lora:  # how it was initialized is over, and may not work with a base without weights
        used.init_lora_weights = True
        used.lora_dropout = _dropout(settings, used.lora_dropout)
    model: Any = injected_skeleton(used, partial(copy.deepcopy, skeleton))
    fields = lora.to_json(used)
    targets = fields["target_modules"] or []
    if model is None:  # it needs the base's weights
        modules = [name for name, _ in skeleton.named_modules()]
        names = [m for m in modules if any(is_selected(m, one) for one in targets)]
        layers, num_trainable = {}, 0
    else:
        layers = adapted_layers(model, "default") if is_lora else {}
        names = [*layers] if is_lora else adapted_modules(model)
        num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(targets, str):
        # Records have names: a regular expression is replaced by what it matches.
        parameters = fields.get("target_parameters") or ()
        of_modules = (n for n in names if not any(is_selected(n, one) for one in parameters))
        fields["target_modules"] = sorted(of_modules)
    else:
        fields["target_modules"] = targets
    kind = LoraConfigRecord if is_lora else PeftConfigRecord
    return Adapted(
        config=kind.model_validate(fields),
        names=names,
        layers=layers,
        chosen_by=_chosen_by(targets, fields, names),
        num_trainable=num_trainable,
    )


def _dropout(settings: LoraSettings, of_source: float) -> float:
    """Return the dropout: the settings' if it is set there, as it changes no answer."""
    return settings.lora_dropout if "lora_dropout" in settings.chosen else of_source


def _chosen_by(
    targets: object, fields: Mapping[str, Any], names: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return what is adapted by what chose it; what no name chose is under `others`."""
    if isinstance(targets, str) and is_pattern(targets):
        return {targets: tuple(names)}
    wanted = [*fields["target_modules"], *(fields.get("target_parameters") or ())]
    chosen = {one: tuple(n for n in names if is_selected(n, one)) for one in wanted}
    left = {*names} - {name for some in chosen.values() for name in some}
    chosen = {one: some for one, some in chosen.items() if some}
    return chosen | ({"others": tuple(sorted(left))} if left else {})


def _check_task(folder: AdapterFolder, base: BaseSource) -> None:
    made_for, task = folder.config.task_type, base.settings.task
    if made_for is not None and str(made_for) != traits_of(task).peft_task_type:
        raise UserError(
            f"lora.from {folder.source} is for PEFT's task {made_for}, and base_model.task is "
            f"{task.value}; set base_model.task to that of its training"
        )


def _check_biases(folder: AdapterFolder) -> None:
    bias = getattr(folder.config, "bias", None)
    if bias not in (None, False, "none"):
        raise UserError(
            f"lora.from {folder.source} trained biases of the base (bias={str(bias)!r}), which are "
            "not apart from it, so that nothing can begin with it; train it with bias none"
        )


def _check_new_tokens(folder: AdapterFolder, skeleton: "PreTrainedModel", base: BaseSource) -> None:
    """Check that the source trains the rows of just the tokens that the run adds to its base."""
    fully_trained = list(folder.config.modules_to_save or ())
    wanted = lora.trained_rows(skeleton, new_token_ids(base), fully_trained) or {}
    has = getattr(folder.config, "trainable_token_indices", None) or {}
    rows = [has] if isinstance(has, list) else [*has.values()]
    if {*map(tuple, rows)} == {*map(tuple, wanted.values())}:
        return
    recorded = (folder.manifest.get("base_model") or {}).get("new_tokens")
    instead = json.dumps(recorded, ensure_ascii=False) if recorded else "those of its training"
    given = json.dumps(list(base.settings.new_tokens), ensure_ascii=False)
    raise UserError(
        f"lora.from {folder.source} trained other rows of the embeddings than those that "
        f"base_model.new_tokens {given} add; set base_model.new_tokens to {instead}"
    )


def _loaded_otherwise(folder: AdapterFolder, base: BaseSource) -> Iterator[str]:
    """Yield a warning if the base was loaded differently in the source's training."""
    recorded = folder.manifest.get("base_model") or {}
    here = {"dtype": base.dtype, "quantization": base.settings.quantization.value}
    then = {name: recorded.get(name, value) for name, value in here.items()}
    if then != here:
        yield (
            f"lora.from {folder.source} was trained on the base in {then['dtype']} with "
            f"quantization {then['quantization']}, and is continued on it in {here['dtype']} with "
            f"quantization {here['quantization']}"
        )
