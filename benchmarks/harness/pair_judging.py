"""The loss of DPO on pairs, by a plain forward pass (https://arxiv.org/abs/2305.18290, eq. 7)."""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from benchmarks.harness.rows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BETA = 0.1
"""TRL's default, and ours."""

Items = list[dict[str, list[int]]]


def mean_pair_loss(model: "PreTrainedModel", reference: list[float], items: Items) -> float:
    """Return the mean loss of pairs.

    Args:
        model: the candidate.
        reference: log-probabilities of the items by the base without an adapter.
        items: chosen and rejected row in turn, with their labels.
    """
    ratios = torch.tensor(log_probabilities(model, items)) - torch.tensor(reference)
    chosen, rejected = ratios[::2], ratios[1::2]
    return float(-logsigmoid(_BETA * (chosen - rejected)).mean())


def log_probabilities(model: "PreTrainedModel", items: Items) -> list[float]:
    """Return the summed log-probability of each item's labels; one row at a time, unpadded."""
    found = []
    for item in items:
        labels = torch.tensor(item["labels"])[1:]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits
        loss = cross_entropy(logits[0, :-1].float(), labels, ignore_index=IGNORED, reduction="sum")
        found.append(-loss.item())
    return found
