"""An adapter's configuration for a base: LoRA's, or that of another of PEFT's methods."""

from tasks.config import LoraSettings
from tasks.engine.adapters import lora
from tasks.engine.adapters.continued import resolve_continued
from tasks.engine.adapters.method_config import resolve_method
from tasks.engine.adapters.methods import LORA
from tasks.engine.adapters.source_adapters import find_source
from tasks.errors import UserError
from tasks.records import BaseSource, ResolvedLora, SourceRecord


def resolve_lora(
    settings: LoraSettings, base: BaseSource, source: SourceRecord | None = None
) -> ResolvedLora:
    """Resolve the settings for a base, by its skeleton, which has no weights.

    Args:
        settings: of the adapter.
        base: the base.
        source: the adapter to begin with, which `settings` name; it is found where it is if this is
            None.

    Raises:
        UserError: a name matches nothing, the settings contradict each other or the source, or PEFT
            refuses them for this base.
    """
    if settings.from_ is not None:
        return resolve_continued(settings, source or find_source(settings.from_), base)
    if settings.method != LORA:
        return resolve_method(settings, base)
    if settings.options:
        raise UserError(
            f"lora.options ({', '.join(settings.options)}) are for methods other than lora; LoRA's "
            "own options are settings of lora, such as lora.lora_alpha"
        )
    return lora.resolve_lora(settings, base)
