"""Checksums of tensors, each computed where the tensor is, and only compared within a process."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WORDS_AT_ONCE = 1 << 24
"""So many 4-byte words are widened to 8 bytes at a time: 128 MB more memory at most."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 divided by the golden ratio, odd, as a signed number."""


def checksums(tensors: Mapping[str, "torch.Tensor"]) -> dict[str, object]:
    """Return a checksum of each tensor's bytes; tensors that share their memory are read once."""
    known: dict[tuple[object, ...], object] = {}
    found: dict[str, object] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if place not in known:
            known[place] = _checksum(tensor.detach())
        found[name] = known[place]
    # Those of a GPU are fetched only now: each would wait for the computations before it.
    return {name: int(one) if hasattr(one, "item") else one for name, one in found.items()}  # type: ignore[call-overload]


def _checksum(tensor: "torch.Tensor") -> object:
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type != "cpu":
        return weighted_sum(flat)
    import xxhash

    return xxhash.xxh3_128_intdigest(flat.numpy().data)


def weighted_sum(data: "torch.Tensor") -> "torch.Tensor":
    """Return the sum of the bytes, as 4-byte words with odd weights by position, modulo 2^64.

    A change of one word always changes it, as an odd weight has an inverse.

    Args:
        data: uint8 [bytes], on any device.

    Returns:
        int64 [], on the same device.
    """
    import torch

    missing = -len(data) % 4
    padded = torch.nn.functional.pad(data, (0, missing)) if missing else data
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for start in range(0, len(padded), 4 * _WORDS_AT_ONCE):
        words = padded[start : start + 4 * _WORDS_AT_ONCE].view(torch.int32).long()
        places = torch.arange(start, start + len(words), device=data.device)
        # The product spreads the weights over all 64 bits; the last bit set makes it odd.
        total += words.mul_(places.add_(1).mul_(_ODD).bitwise_or_(1)).sum()
    return total
