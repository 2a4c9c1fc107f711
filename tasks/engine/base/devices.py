"""The device that models are loaded onto: a GPU if there is one, else the CPU.

Apple's GPUs (`mps`) are used where torch reports one. Nothing was run on one yet.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GPUS = ("cuda", "mps")


def device(is_available: Callable[[str], bool] | None = None) -> "torch.device":
    """Return the device that models are loaded onto: the first GPU, else the CPU.

    Args:
        is_available: whether there is a GPU of this kind; by default torch is asked.
    """
    import torch

    found = is_available or _is_available
    return torch.device(next(filter(found, _GPUS), "cpu"))


def _is_available(kind: str) -> bool:
    import torch

    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
