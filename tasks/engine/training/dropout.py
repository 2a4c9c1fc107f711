"""The base's own dropout, off for a while: pairs are compared with a reference without any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def without_base_dropout(model: "PreTrainedModel") -> Iterator[None]:
    """Set the probability of the base's dropout layers to 0, for a while, as TRL does.

    The adapter's own dropout stays: it is a setting of the run.
    """
    tuned = (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    of_adapter = {id(module) for layer in tuned for module in layer.modules()}
    layers = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Dropout) and id(module) not in of_adapter
    ]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = 0.0
        yield
    finally:
        for layer, probability in zip(layers, before, strict=True):
            layer.p = probability
