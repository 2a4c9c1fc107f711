"""Adapters whose initialization altered the base, as plain LoRA for the original base.

PiSSA (https://arxiv.org/abs/2404.02948, section 3) initializes with A0, B0 taken out of the weight:
W' = W - s·B0·A0. After training the layer computes W' + s·B·A = W + s·(B·A - B0·A0), and
[B, B0]·[A; -A0] is that difference as one product of rank 2r.
"""

import math
from typing import TYPE_CHECKING

from tasks.records import LoraConfigRecord, PeftConfigRecord

if TYPE_CHECKING:
    from torch import Tensor

ALTERS_BASE = ("pissa",)


def alters_base(config: PeftConfigRecord) -> bool:
    """Return whether the adapter's initialization alters the base's weights."""
    return isinstance(config, LoraConfigRecord) and config.init_lora_weights in ALTERS_BASE


def to_plain(
    trained: dict[str, "Tensor"], initial: dict[str, "Tensor"], config: PeftConfigRecord
) -> tuple[dict[str, "Tensor"], PeftConfigRecord]:
    """Return weights and configuration that load into the original base.

    Args:
        trained: the adapter's weights after training.
        initial: its weights before training.
        config: its configuration.

    Returns:
        Both unchanged if the initialization did not alter the base, else of rank 2r.
    """
    if not isinstance(config, LoraConfigRecord) or not alters_base(config):
        return trained, config
    weights = {key: _stacked(key, value, initial[key]) for key, value in trained.items()}
    # The scale s, alpha/r or with rsLoRA alpha/sqrt(r), must stay the same at twice the rank.
    growth = math.sqrt(2) if config.use_rslora else 2
    changes = {
        "r": 2 * config.r,
        "lora_alpha": growth * config.lora_alpha,
        "rank_pattern": {one: 2 * r for one, r in config.rank_pattern.items()},
        "alpha_pattern": {one: growth * alpha for one, alpha in config.alpha_pattern.items()},
        "init_lora_weights": True,
    }
    return weights, config.model_copy(update=changes)


def _stacked(key: str, trained: "Tensor", initial: "Tensor") -> "Tensor":
    import torch

    if ".lora_A." in key or ".lora_embedding_A" in key:
        return torch.cat([trained, -initial], dim=0).contiguous()
    if ".lora_B." in key or ".lora_embedding_B" in key:
        return torch.cat([trained, initial], dim=1).contiguous()
    return trained
