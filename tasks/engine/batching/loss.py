"""The training loss: cross entropy, in nats, over the labeled positions of a micro-batch.

The logits of a large vocabulary are the largest tensors of a training step. Where the model's
output layer is linear and frozen and its logits are used unchanged, they are computed in chunks,
and each chunk is turned into its share of the gradient immediately, so that no chunk outlives its
own computation (Cut Cross-Entropy, https://arxiv.org/abs/2411.09009, section 4, and Liger do so in
GPU kernels; PyTorch 2.13's `linear_cross_entropy` rounds the loss to the dtype of the weights).
Otherwise all logits are computed at once.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, linear

from tasks.engine.base import mixed_precision
from tasks.engine.batching.batches import MicroBatch
from tasks.engine.data.tokens import IGNORED
from tasks.engine.kernels import looking_only_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_LOGITS = 128 * 49152
"""Logits in a chunk: 25 MB in float32, 128 positions at SmolLM2's vocabulary of 49152."""


def labeled_logits(model: "PreTrainedModel", micro_batch: MicroBatch) -> torch.Tensor:
    """Return the logits at the micro-batch's labeled positions, [rows, kept, vocabulary].

    Where the model's forward takes `logits_to_keep`, the output layer skips all other positions.
    """
    inputs = _inputs(model, micro_batch)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept = model(**inputs, logits_to_keep=micro_batch["logits_to_keep"]).logits
    else:
        kept = model(**inputs).logits[:, micro_batch["logits_to_keep"]]
    return kept  # type: ignore[no-any-return]


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each label, in nats, float32 [rows, labels].

    It is 0 where the label is -100.

    Args:
        logits: [rows, labels, classes], or [rows, classes] with one label a row; the classes of a
            language model are its vocabulary.
        labels: int64 [rows, labels], -100 where not trained on.
    """
    wanted = labels != IGNORED
    chosen = logits.view(*labels.shape, -1)[wanted].float()
    found = chosen.new_zeros(labels.shape)
    found[wanted] = cross_entropy(chosen, labels[wanted], reduction="none")
    return found


def summed_loss(
    model: "PreTrainedModel", micro_batch: MicroBatch, *, in_chunks: bool = False
) -> torch.Tensor:
    """Return the cross entropy summed over the micro-batch's labels, in nats, a float32 scalar.

    Args:
        model: a causal language model.
        micro_batch: its inputs and labels.
        in_chunks: compute the logits in chunks; only valid where `can_chunk` returned True.
    """
    labels = micro_batch["labels"]
    with mixed_precision(model):  # Trainer 5.23 has no autocast for float16 on a CPU
        if not in_chunks:
            logits = labeled_logits(model, micro_batch)
            return cross_entropy(
                logits.flatten(0, 1).float(),
                labels.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
        hidden = _labeled_states(model, micro_batch)[labels != IGNORED]
    head: Any = model.get_output_embeddings()
    labeled = labels[labels != IGNORED]
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, labeled)  # type: ignore[no-any-return,no-untyped-call]


def label_nll(
    model: "PreTrainedModel", micro_batch: MicroBatch, labels: torch.Tensor, *, in_chunks: bool
) -> torch.Tensor:
    """Return the negative log-likelihood of each label, in nats, float32 [labels].

    Args:
        model: a causal language model.
        micro_batch: its inputs.
        labels: int64 [rows, kept], -100 where not wanted; the others are returned row by row.
        in_chunks: compute the logits in chunks; only valid where `can_chunk` returned True.
    """
    wanted = labels != IGNORED
    with mixed_precision(model):
        if not in_chunks:
            return token_nll(labeled_logits(model, micro_batch), labels)[wanted]
        hidden = _labeled_states(model, micro_batch)[wanted]
    head: Any = model.get_output_embeddings()
    return _ChunkedNll.apply(hidden, head.weight, head.bias, labels[wanted])  # type: ignore[no-any-return,no-untyped-call]


def can_chunk(model: "PreTrainedModel", micro_batch: MicroBatch, logits: torch.Tensor) -> bool:
    """Return whether the model's logits are those of a frozen linear output layer, unchanged.

    Some architectures cap or scale logits afterwards (Gemma 2, Granite), so this is tested on data.

    Args:
        model: a causal language model.
        micro_batch: its inputs.
        logits: what `labeled_logits` returned for them; compared bit for bit.
    """
    head: Any = model.get_output_embeddings()
    # A subclass of Linear (an adapter, a quantized layer) may compute something else.
    if type(head) is not torch.nn.Linear or head.weight.requires_grad:
        return False
    if head.weight.dtype != model.dtype or model.get_decoder() is model:
        return False
    with torch.no_grad(), mixed_precision(model):
        return torch.equal(head(_labeled_states(model, micro_batch)), logits)


def _inputs(model: Any, micro_batch: MicroBatch) -> dict[str, Any]:  # noqa: ANN401 - a decoder is any module
    """Return those inputs of a micro-batch that the model's, or its decoder's, forward accepts."""
    parameters = inspect.signature(model.forward).parameters
    known = ("input_ids", "attention_mask", "position_ids")
    return {name: micro_batch[name] for name in known if name in parameters} | {"use_cache": False}


def _labeled_states(model: "PreTrainedModel", micro_batch: MicroBatch) -> torch.Tensor:
    """Return the output layer's input at the labeled positions, [rows, kept, hidden]."""
    decoder = model.get_decoder()
    kept = micro_batch["logits_to_keep"]
    with looking_only_at(kept):
        states = decoder(**_inputs(decoder, micro_batch)).last_hidden_state
    return states[:, kept]  # type: ignore[no-any-return]


class _ChunkedLoss(torch.autograd.Function):
    """Σ cross_entropy(W·h + bias, label) for a frozen W.

    The gradient with respect to h is computed in the forward pass, while the logits of a chunk are
    there; a frozen W needs none.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sum, float32; `hidden` is [labels, hidden], `labels` int64 [labels]."""
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk in _chunks(len(labels), weight):
            of_hidden = None if gradient is None else gradient[chunk]
            total -= _log_likelihood(hidden[chunk], weight, bias, labels[chunk], of_hidden).sum()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Return the gradient of the hidden states."""
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient, None, None, None


class _ChunkedNll(torch.autograd.Function):
    """The cross entropy of each label for a frozen W; see `_ChunkedLoss`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return it, float32 [labels]; `hidden` is [labels, hidden], `labels` int64 [labels]."""
        found = hidden.new_empty(len(labels), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk in _chunks(len(labels), weight):
            of_hidden = None if gradient is None else gradient[chunk]
            likelihood = _log_likelihood(hidden[chunk], weight, bias, labels[chunk], of_hidden)
            found[chunk] = -likelihood.flatten()
        ctx.save_for_backward(gradient)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Return the gradient of the hidden states."""
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient[:, None], None, None, None


def _chunks(num_labels: int, weight: torch.Tensor) -> Iterator[slice]:
    """Yield the labels in slices whose logits are few enough."""
    rows = max(1, _CHUNK_LOGITS // weight.shape[0])
    for start in range(0, num_labels, rows):
        yield slice(start, start + rows)


def _log_likelihood(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    of_hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Return the log-likelihood of labels, float32 [labels, 1].

    Write the gradient of its negative with respect to the hidden states to `of_hidden`.
    """
    label = labels[:, None]
    logits = linear(hidden.to(weight.dtype), weight, bias).float()
    log_probabilities = logits.log_softmax(dim=-1)
    found = log_probabilities.gather(1, label)
    if of_hidden is not None:
        # d loss / d logits = softmax - one_hot(label), in place of the log-probabilities.
        of_logits = log_probabilities.exp_()
        of_logits.scatter_add_(1, label, torch.full_like(label, -1, dtype=logits.dtype))
        of_hidden.copy_(of_logits.to(weight.dtype) @ weight)
    return found
