"""The device that is computed on, a GPU if there is one, else the CPU; and where bases are held.

Apple's GPUs (`mps`) are used where torch reports one. Nothing was run on one yet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GPUS = ("cuda", "mps")
_on_host: ContextVar[bool] = ContextVar("_on_host", default=False)


def device(is_available: Callable[[str], bool] | None = None) -> "torch.device":
    """Return the device that is computed on: the first GPU, else the CPU.

    Args:
        is_available: whether there is a GPU of this kind; by default torch is asked.
    """
    import torch

    found = is_available or _is_available
    return torch.device(next(filter(found, _GPUS), "cpu"))


def base_device() -> "torch.device":
    """Return the device that a base is loaded onto: see `device`, and `bases_on_host`."""
    import torch

    return torch.device("cpu") if _on_host.get() else device()


@contextmanager
def bases_on_host(*, needed: bool = True) -> Iterator[None]:
    """Load bases into the host's memory for a while, if that is needed, though there are GPUs."""
    before = _on_host.set(_on_host.get() or needed)
    try:
        yield
    finally:
        _on_host.reset(before)


def _is_available(kind: str) -> bool:
    import torch

    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
