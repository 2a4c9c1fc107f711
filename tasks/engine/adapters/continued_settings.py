"""Whether the settings of an adapter agree with those of the adapter that it begins as."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import LoraSettings
from tasks.engine.adapters import lora
from tasks.engine.adapters.method_config import target_names
from tasks.engine.adapters.methods import LORA, find_method
from tasks.engine.adapters.targets import is_selected
from tasks.engine.base import traits_of
from tasks.engine.excerpts import listed, shown
from tasks.records import AdaptedLayer, BaseSource, PeftConfigRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_PART_OF_IT = {"from_", "adapter_name", "lora_dropout", "init_lora_weights"}
"""Settings that a source does not determine: they change no answer, or are for fresh adapters."""
_SELECTING = {
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
}
"""Settings that are compared by what they select, however it is written."""
_PRESUMED_HEADS = {"classifier", "score", "qa_outputs"}
"""What PEFT 0.21 adds to `modules_to_save` for the tasks of classification."""


@dataclass(frozen=True)
class Adapted:
    """What the configuration of a saved adapter adapts in a base."""

    config: PeftConfigRecord
    names: list[str]
    """The dotted names of the adapted modules and parameters."""
    layers: dict[str, AdaptedLayer]
    """The same with rank and alpha; empty for methods other than LoRA."""
    chosen_by: dict[str, tuple[str, ...]]
    """The same by the name or pattern that chose it."""
    num_trainable: int


def differences(
    settings: LoraSettings, source: Adapted, base: BaseSource, skeleton: "PreTrainedModel"
) -> Iterator[str]:
    """Yield how each setting that is set differs from the adapter to begin with.

    Args:
        settings: as the user set them.
        source: the adapter to begin with.
        base: the base.
        skeleton: the base without weights.

    Raises:
        UserError: a setting could not work with any adapter.
    """
    if "method" in settings.chosen and settings.method != source.config.method:
        yield f"method is {settings.method}, and it is {source.config.method}"
        return
    head = set(traits_of(base.settings.task).head_modules(skeleton))
    yield from _other_values(settings, source.config, head)
    if selecting := sorted(_SELECTING & settings.chosen):
        yield from _selected_otherwise(settings, selecting, source, base, skeleton)


def _other_values(
    settings: LoraSettings, config: PeftConfigRecord, head: set[str]
) -> Iterator[str]:
    fields = config.to_json() | {"modules_to_save": _fully_trained(config, head)}
    compared = settings.chosen - _NO_PART_OF_IT - _SELECTING - {"method", "options"}
    given = settings.model_dump(mode="json", include=set(compared)) | settings.options
    if "modules_to_save" in given:
        given["modules_to_save"] = sorted({*given["modules_to_save"]} - head)
    for name, value in given.items():
        if name in fields and fields[name] != value:
            yield f"{name} is {shown(value)}, and it has {shown(fields[name])}"
        # What other methods lack has its default where the form or a deployment set everything.
        elif name not in fields and value != getattr(LoraSettings(), name, None):
            yield f"{name} is {shown(value)}, which {config.method} does not have"


def _fully_trained(config: PeftConfigRecord, head: set[str]) -> list[str]:
    """Return the fully trained modules, without those that the task adds to the base."""
    return sorted({*(config.modules_to_save or ())} - head - _PRESUMED_HEADS)


def _selected_otherwise(
    settings: LoraSettings,
    selecting: list[str],
    source: Adapted,
    base: BaseSource,
    skeleton: "PreTrainedModel",
) -> Iterator[str]:
    """Yield how the layers that the settings select differ from those that the source adapts."""
    what = " and ".join(selecting)
    head = traits_of(base.settings.task).head_modules(skeleton)
    if source.config.method != LORA:
        method = find_method(source.config.method)
        names = target_names(settings, method, skeleton, head) or []
        modules = [name for name, _ in skeleton.named_modules()]
        selected = {m for m in modules if any(is_selected(m, one) for one in names)}
        yield from _other_names(what, selected, {*source.names})
        return
    wanted = lora.resolve_lora(_completed(settings, source.config, {*head}), base).adapted
    if others := [*_other_names(what, {*wanted}, {*source.layers})]:
        yield from others
    elif {"rank_pattern", "alpha_pattern"} & {*selecting}:
        other = [name for name in sorted(wanted) if wanted[name] != source.layers[name]]
        for name in other[:1]:
            yield f"{what} give {name} {wanted[name]}, and it has {source.layers[name]}"


def _other_names(what: str, selected: set[str], has: set[str]) -> Iterator[str]:
    if extra := sorted(selected - has):
        yield f"{what} select {listed(extra)}, which it does not adapt"
    if missing := sorted(has - selected):
        yield f"{what} do not select {listed(missing)}, which it adapts"


def _completed(settings: LoraSettings, config: PeftConfigRecord, head: set[str]) -> LoraSettings:
    """Return settings of a fresh adapter: what is not set is as the source has it."""
    fields = config.to_json()
    of_source = {
        "modules_to_save": _fully_trained(config, head),
        "target_modules": fields["target_modules"],
        "target_parameters": fields.get("target_parameters") or [],
        **{
            name: fields.get(name)
            for name in ("r", "lora_alpha", "use_rslora", "use_dora", "exclude_modules")
        },
        **{
            name: fields.get(name)
            for name in ("layers_to_transform", "rank_pattern", "alpha_pattern")
        },
    }
    given = settings.model_dump(include=set(settings.chosen - _NO_PART_OF_IT))
    return LoraSettings.model_validate({**of_source, **given})
