"""The adapter's weights in a model: distinguish them from the base's, read, write, compare them.

`add_adapter()` injects into the model's own modules. The names of the weights that PEFT adds begin
with a prefix of the method, such as `lora_`, and fully trained modules are wrapped, whose copies
are under `modules_to_save`.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import VerificationError
from tasks.runtime.atomic_files import atomic_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"


@cache
def _adapter_part() -> re.Pattern[str]:
    """Return the pattern of the part of a parameter's name that has the adapter's name."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefixes = sorted({*PEFT_TYPE_TO_PREFIX_MAPPING.values()})
    return re.compile(rf"\.(?:(?:{'|'.join(prefixes)})\w*|modules_to_save)\.([^.]+)")


def is_adapter_parameter(name: str, adapter_name: str | None = None) -> bool:
    """Return whether a parameter belongs to an adapter, judged by its name.

    Args:
        name: the parameter's dotted name.
        adapter_name: if given, only this adapter counts.
    """
    part = _adapter_part().search(name)
    return part is not None and adapter_name in (None, part.group(1))


def read_adapter(model: "PreTrainedModel", adapter_name: str) -> dict[str, "torch.Tensor"]:
    """Return a copy of one adapter's weights on the CPU, by their names in the base."""
    from peft import get_peft_model_state_dict

    # By default PEFT also saves the embeddings if it guesses that they were resized. Here they are
    # in `modules_to_save` if they train, and only then.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {loadable(key): value.detach().cpu().clone() for key, value in state.items()}


def loadable(key: str) -> str:
    """Return a weight's key in the form that both PEFT and transformers can read.

    PEFT 0.21 writes DoRA's keys without `.weight` and reads both forms. transformers 5.23 only
    reads them with it, and otherwise silently keeps the base's magnitudes.
    """
    return f"{key}.weight" if key.endswith(".lora_magnitude_vector") else key


def write_adapter(
    model: "PreTrainedModel", adapter_name: str, weights: dict[str, "torch.Tensor"]
) -> None:
    """Set the weights of an adapter that the model already has.

    Raises:
        VerificationError: the weights' keys or shapes are not the adapter's.
    """
    from peft import set_peft_model_state_dict

    present = {key: value.shape for key, value in read_adapter(model, adapter_name).items()}
    given = {key: value.shape for key, value in weights.items()}
    if present != given:
        wrong = sorted(k for k in present.keys() | given.keys() if present.get(k) != given.get(k))
        raise VerificationError(
            f"{len(wrong)} weights are not those of adapter {adapter_name!r}, such as {wrong[0]}"
        )
    set_peft_model_state_dict(model, weights, adapter_name=adapter_name)


def save_weights(weights: dict[str, "torch.Tensor"], file: Path) -> Path:
    """Write weights to a safetensors file, atomically; return the file.

    Raises:
        UnwritableError: the disk is full, or the place is not writable.
    """
    from safetensors.torch import save_file

    with atomic_file(file) as sibling:
        save_file(weights, sibling, metadata={"format": "pt"})
    return file


def load_weights(file: Path) -> dict[str, "torch.Tensor"]:
    """Read the weights that `save_weights` wrote."""
    from safetensors.torch import load_file

    return load_file(file)


def base_weights(model: "PreTrainedModel") -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield the base's weights and buffers with their names, in a fixed order.

    The base's biases that train with the adapter (`bias` other than `none`) are left out.
    """
    for name, parameter in sorted(model.named_parameters()):
        if not is_adapter_parameter(name) and not parameter.requires_grad:
            yield name, parameter.detach()
    yield from sorted((n, b) for n, b in model.named_buffers() if not is_adapter_parameter(n))


def base_checksum(model: "PreTrainedModel") -> str:
    """Return the xxh3-128 of all base weights, to prove that training changed no bit of them."""
    return _checksum(base_weights(model))


def weights_checksum(weights: dict[str, "torch.Tensor"]) -> str:
    """Return the xxh3-128 of an adapter's weights."""
    return _checksum(sorted(weights.items()))


def _checksum(tensors: Iterable[tuple[str, "torch.Tensor"]]) -> str:
    import torch
    import xxhash

    checksum = xxhash.xxh3_128()
    for name, tensor in tensors:
        checksum.update(name.encode())
        flat = _whole(tensor).contiguous().cpu().reshape(-1)
        checksum.update(flat.view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a tensor of which other processes have parts, gathered; each of them has to ask."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def weight_change(before: dict[str, "torch.Tensor"], after: dict[str, "torch.Tensor"]) -> float:
    """Return the Euclidean norm of the difference between two states of one adapter."""
    import math

    return math.hypot(*((after[k].double() - before[k].double()).norm().item() for k in before))
