"""Eval mode for a while: no dropout, so that equal inputs give equal outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def eval_mode(model: "nn.Module") -> Iterator[None]:
    """Put a model into eval mode, and restore the mode of each module afterwards."""
    # One by one: `model.train()` would also put modules into training mode that were not in it.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
