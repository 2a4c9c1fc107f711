"""Tokens that a run adds to its base (`base_model.new_tokens`): to its tokenizer and embeddings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.engine.excerpts import shown
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> None:
    """Add tokens to a tokenizer, so that each is one token wherever a text contains it.

    They are not special tokens to the tokenizer, because those are left out of decoded answers.

    Raises:
        UserError: it has one of them already.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    if old := [token for token in tokens if token in known]:
        raise UserError(
            f"base_model.new_tokens: {shown(old[0])} is a token of the base already (number "
            f"{known[old[0]]}); remove it"
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


def token_ids(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> list[int]:
    """Return the numbers of tokens that the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in tokens)


def add_embeddings(model: "PreTrainedModel", new: Sequence[int]) -> None:
    """Add rows for new tokens to the input and output embeddings, each the mean of the older rows.

    Rows are appended where the embeddings have none to spare: those of many bases have more rows
    than the tokenizer has tokens. The mean makes a new token neither likely nor unlikely (as in
    transformers' `mean_resizing`), and unlike that draws no random numbers.

    Args:
        model: loaded, or on the meta device; tied embeddings stay tied.
        new: the numbers of the new tokens, those behind all others.
    """
    import torch

    before: Any = model.get_input_embeddings().weight
    num_rows = before.shape[0]
    if num_rows <= max(new):
        model.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    ends: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(end.weight): end.weight for end in ends if end is not None}
    # A tokenizer can have tokens without a row, such as one for padding. They get one now, which
    # transformers fills with random numbers.
    added = sorted({*new, *range(num_rows, max(new) + 1)})
    with torch.no_grad():
        for weight in weights.values():
            if weight.device.type != "meta":
                weight[added] = weight[: min(added)].float().mean(dim=0).to(weight.dtype)
    model.requires_grad_(requires_grad=False)
