"""Eval mode: no dropout, so that equal inputs give equal outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def eval_mode(model: "nn.Module") -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into the mode it was in."""
    # One by one: `model.train()` would also set those in training that were not.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
