"""What PEFT can't do with an adapted parameter, found before a weight is loaded.

For a module PEFT adds B·A·x to its output. For a parameter it adds B·A to the weight for the time
of a forward, and never sees what the weight is multiplied by.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.config import BaseModelSettings, LoraInit, LoraSettings, Quantization
from tasks.engine.excerpts import listed
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INITS = (LoraInit.DEFAULT, LoraInit.GAUSSIAN)
"""PEFT 0.21's others need a module's `weight`, or A and B of a single matrix."""


def check_parameters(
    settings: LoraSettings,
    target_parameters: list[str],
    model: "PreTrainedModel",
    base: BaseModelSettings | None = None,
) -> None:
    """Check that PEFT can adapt parameters with these settings.

    Args:
        settings: what the user set.
        target_parameters: the names of the parameters.
        model: the base, without weights.
        base: its settings; None if it is loaded as it is.

    Raises:
        UserError: it can't; the message names all that stands in the way.
    """
    if not target_parameters:
        return
    found = [*_limits(settings), *_of_base(target_parameters, model, base)]
    if not found:
        return
    what, remedies = zip(*found, strict=True)
    raise UserError(
        f"{', '.join(what)}, which PEFT can't combine with adapted parameters, "
        f"{listed(target_parameters)}; {', '.join(remedies)}, or leave experts and other "
        "parameters out of lora.target_modules and lora.target_parameters"
    )


def _limits(settings: LoraSettings) -> list[tuple[str, str]]:
    """Return the settings that don't work with adapted parameters, each with its remedy."""
    found = []
    if settings.lora_dropout:
        found.append((f"lora.lora_dropout is {settings.lora_dropout:g}", "set lora_dropout to 0"))
    if settings.use_dora:
        found.append(("lora.use_dora is true", "set use_dora to false"))
    if (init := settings.init_lora_weights) not in _INITS:
        found.append(
            (
                f"lora.init_lora_weights is {init.value}",
                f"set init_lora_weights to {' or '.join(_INITS)}",
            )
        )
    return found


def _of_base(
    names: list[str], model: "PreTrainedModel", base: BaseModelSettings | None
) -> Iterator[tuple[str, str]]:
    """Yield what quantized weights stand in the way: PEFT would add to their encoding."""
    if getattr(model.config, "quantization_config", None):
        yield "the base's files are quantized", "use a base in full precision"
        return
    packed = _in_linear(names, model)
    if packed and base and base.quantization is not Quantization.NONE:
        what = f"base_model.quantization is {base.quantization.value}, for {listed(packed)}"
        yield what, "set quantization to none"


def _in_linear(names: list[str], model: "PreTrainedModel") -> list[str]:
    """Return those of the parameters that are weights of linear layers."""
    from torch import nn

    weights = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [one for one in names if any(w == one or w.endswith(f".{one}") for w in weights)]
