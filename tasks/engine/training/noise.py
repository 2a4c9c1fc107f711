"""NEFTune: noise on the embeddings in training (Jain et al. 2023, https://arxiv.org/abs/2310.05914).

Trainer has it, too, but takes all rows of a packed sequence for one, and the noise gets too small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.batching import MicroBatch


@contextmanager
def noisy_embeddings(
    model: "PreTrainedModel", micro_batch: "MicroBatch", alpha: float | None
) -> Iterator[None]:
    """Add noise to the embeddings of a micro-batch; without an alpha, do nothing.

    Each value is drawn from U(-1, 1) and scaled by alpha / sqrt(tokens of its row x embedding
    size), as in section 2 of the paper.
    """
    if alpha is None:
        yield
        return
    tokens = _tokens_of_row(micro_batch)

    def add(_: object, __: object, embedded: torch.Tensor) -> torch.Tensor:
        scale = alpha / (tokens * embedded.shape[-1]).sqrt()
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * scale[..., None].to(noise)

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _tokens_of_row(micro_batch: "MicroBatch") -> torch.Tensor:
    """Return for each position the number of tokens of its row, float32 [rows, sequence]."""
    mask, positions = micro_batch["attention_mask"], micro_batch["position_ids"]
    if mask.shape == positions.shape:  # padded
        return mask.sum(dim=1, keepdim=True).expand_as(mask).float()
    [row] = (positions == 0).cumsum(dim=1) - 1
    tokens: torch.Tensor = row.bincount()[row][None].float()
    return tokens
