"""An adapter's configuration for a base: LoRA's, or that of another of PEFT's methods."""

from tasks.config import LoraSettings
from tasks.engine.adapters import lora
from tasks.engine.adapters.method_config import resolve_method
from tasks.engine.adapters.methods import LORA
from tasks.errors import UserError
from tasks.records import BaseSource, ResolvedLora


def resolve_lora(settings: LoraSettings, base: BaseSource) -> ResolvedLora:
    """Resolve the settings for a base, by its skeleton, which has no weights.

    Raises:
        UserError: a name matches nothing, the settings contradict each other, or PEFT refuses them
            for this base.
    """
    if settings.method != LORA:
        return resolve_method(settings, base)
    if settings.options:
        raise UserError(
            f"lora.options ({', '.join(settings.options)}) are for methods other than lora; LoRA's "
            "own options are settings of lora, such as lora.lora_alpha"
        )
    return lora.resolve_lora(settings, base)
