"""The adapter's weights inside a model: told apart from the base's, read out, written in, compared.

`add_adapter()` injects into the model's own modules; PEFT names what it adds `lora_…` and wraps
what trains whole under `modules_to_save`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import VerificationError
from tasks.runtime.atomic_files import atomic_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"

_ADAPTER_PART = re.compile(r"\.(?:lora_\w+|modules_to_save)\.([^.]+)")


def is_adapter_parameter(name: str, adapter_name: str | None = None) -> bool:
    """Tell by its dotted name whether a parameter belongs to an adapter, or to this one."""
    part = _ADAPTER_PART.search(name)
    return part is not None and adapter_name in (None, part.group(1))


def read_adapter(model: "PreTrainedModel", adapter_name: str) -> dict[str, "torch.Tensor"]:
    """Give a copy of one adapter's weights on the CPU, by module and matrix."""
    from peft import get_peft_model_state_dict

    # Saving the embeddings along is PEFT's guess where they might have been resized; here they
    # are in `modules_to_save` when they train, and only then.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {loadable(key): value.detach().cpu().clone() for key, value in state.items()}


def loadable(key: str) -> str:
    """Write a weight's key as both libraries read it.

    PEFT 0.21 leaves out the end of DoRA's keys and reads them both ways; transformers 5.23 reads
    them with their end only, and goes on with the base's magnitudes where it is missing.
    """
    return f"{key}.weight" if key.endswith(".lora_magnitude_vector") else key


def write_adapter(
    model: "PreTrainedModel", adapter_name: str, weights: dict[str, "torch.Tensor"]
) -> None:
    """Put weights into an adapter that the model already has.

    Raises:
        VerificationError: the weights' keys or shapes are not the adapter's.
    """
    from peft import set_peft_model_state_dict

    present = {key: value.shape for key, value in read_adapter(model, adapter_name).items()}
    given = {key: value.shape for key, value in weights.items()}
    if present != given:
        wrong = sorted(k for k in present.keys() | given.keys() if present.get(k) != given.get(k))
        raise VerificationError(
            f"{len(wrong)} weights do not belong to adapter {adapter_name!r}, such as {wrong[0]}"
        )
    set_peft_model_state_dict(model, weights, adapter_name=adapter_name)


def save_weights(weights: dict[str, "torch.Tensor"], file: Path) -> Path:
    """Write weights to a safetensors file, atomically.

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
    """Give the base's own weights and buffers, in a fixed order.

    A base bias that trains along (`bias` other than `none`) is not among them.
    """
    for name, parameter in sorted(model.named_parameters()):
        if not is_adapter_parameter(name) and not parameter.requires_grad:
            yield name, parameter.detach()
    yield from sorted((n, b) for n, b in model.named_buffers() if not is_adapter_parameter(n))


def base_checksum(model: "PreTrainedModel") -> str:
    """Give the xxh3-128 of all base weights: equal before and after training, bit for bit."""
    import torch
    import xxhash

    checksum = xxhash.xxh3_128()
    for name, tensor in base_weights(model):
        checksum.update(name.encode())
        flat = tensor.contiguous().cpu().reshape(-1)
        checksum.update(flat.view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def change(before: dict[str, "torch.Tensor"], after: dict[str, "torch.Tensor"]) -> float:
    """Give the Euclidean norm of the difference of two states of one adapter."""
    import math

    return math.hypot(*((after[k].double() - before[k].double()).norm().item() for k in before))
