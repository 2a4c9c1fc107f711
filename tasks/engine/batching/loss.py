"""The training loss: cross entropy in nats over the labelled positions of a part.

The logits of a large vocabulary are the largest tensors of a training step. Where the model's
output layer is a frozen linear one and its logits are used as they are, they are computed in
chunks, each turned into its part of the gradient at once (as Cut Cross-Entropy,
https://arxiv.org/abs/2411.09009, and Liger do in kernels for GPUs; PyTorch 2.13's own
`linear_cross_entropy` rounds the loss to the type of the weights). Otherwise they are computed
whole.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, linear

from tasks.engine.base.base_models import mixed_precision
from tasks.engine.batching.batches import Part
from tasks.engine.data.tokenization import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_LOGITS = 128 * 49152
"""Logits computed at once: 25 MB in float32."""


def labelled_logits(model: "PreTrainedModel", part: Part) -> torch.Tensor:
    """Give the logits at the part's labelled positions, [lines, kept, vocabulary].

    The model's output layer is spared all other positions where its forward allows that.
    """
    inputs = _inputs(model, part)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept = model(**inputs, logits_to_keep=part["logits_to_keep"]).logits
    else:
        kept = model(**inputs).logits[:, part["logits_to_keep"]]
    return kept  # type: ignore[no-any-return]


def nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Give the cross entropy of each label, in nats, float32; 0 for what is ignored.

    Args:
        logits: [lines, labels of a line, classes], or [lines, classes] for one label a line.
        labels: int64 [lines, labels of a line].
    """
    wanted = labels != IGNORED
    chosen = logits.view(*labels.shape, -1)[wanted].float()
    found = chosen.new_zeros(labels.shape)
    found[wanted] = cross_entropy(chosen, labels[wanted], reduction="none")
    return found


def summed_loss(model: "PreTrainedModel", part: Part, *, in_chunks: bool = False) -> torch.Tensor:
    """Give the cross entropy summed over the part's labels, in nats.

    Args:
        model: a causal language model.
        part: its inputs and labels.
        in_chunks: whether `can_chunk` found that the logits may be computed in chunks.
    """
    labels = part["labels"]
    with mixed_precision(model):  # Trainer itself has none for float16 on the CPU
        if not in_chunks:
            logits = labelled_logits(model, part)
            return cross_entropy(
                logits.flatten(0, 1).float(),
                labels.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
        hidden = _labelled_states(model, part)[labels != IGNORED]
    head: Any = model.get_output_embeddings()
    labelled = labels[labels != IGNORED]
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, labelled)  # type: ignore[no-any-return,no-untyped-call]


def can_chunk(model: "PreTrainedModel", part: Part, logits: torch.Tensor) -> bool:
    """Tell whether the part's logits are the output layer's, and that layer is frozen.

    Some architectures cap or scale them afterwards.

    Args:
        model: a causal language model.
        part: its inputs.
        logits: what `labelled_logits` gave for them, compared bit for bit.
    """
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad:
        return False
    if head.weight.dtype != model.dtype or model.get_decoder() is model:
        return False
    with torch.no_grad(), mixed_precision(model):
        return torch.equal(head(_labelled_states(model, part)), logits)


def _inputs(model: Any, part: Part) -> dict[str, Any]:  # noqa: ANN401 - a decoder is any module
    """Give what the forward of a model or of its decoder wants of a part."""
    parameters = inspect.signature(model.forward).parameters
    known = ("input_ids", "attention_mask", "position_ids")
    return {name: part[name] for name in known if name in parameters} | {"use_cache": False}


def _labelled_states(model: "PreTrainedModel", part: Part) -> torch.Tensor:
    """Give what the output layer sees of the labelled positions, [lines, kept, size]."""
    decoder = model.get_decoder()
    states = decoder(**_inputs(decoder, part)).last_hidden_state
    return states[:, part["logits_to_keep"]]  # type: ignore[no-any-return]


class _ChunkedLoss(torch.autograd.Function):
    """Σ cross_entropy(W·h + bias, label) for frozen W; the gradient of h is made along the way."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Give the sum; hidden is [labels, size], labels int64 [labels]."""
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, _CHUNK_LOGITS // weight.shape[0])
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            label = labels[chunk, None]
            logits = linear(hidden[chunk].to(weight.dtype), weight, bias).float()
            of_logits = logits.log_softmax(dim=-1)
            total -= of_logits.gather(1, label).sum()
            if gradient is not None:  # softmax - one_hot(label)
                of_logits.exp_()
                of_logits.scatter_add_(1, label, torch.full_like(label, -1, dtype=logits.dtype))
                gradient[chunk] = of_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Give the gradient of the hidden states."""
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient, None, None, None
