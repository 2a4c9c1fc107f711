"""What a model can read: how many positions it has, and for which tokens it has embeddings.

A token beyond either is an index error inside torch. On a GPU that is a device-side assert, after
which the process cannot use the GPU any more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tasks.engine.base.base_models import load_skeleton
from tasks.errors import UserError
from tasks.records import BaseSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class InputLimits:
    """The longest sequence and the largest token id that a model can read."""

    num_embeddings: int
    """Token ids must be smaller."""
    positions: int | None
    """Tokens of the longest sequence that the model was made for; None if its configuration does
    not say."""
    are_fixed: bool
    """Whether the positions are rows of a table, so that a longer sequence fails. Rotary and
    relative positions can be computed beyond, although the model was not trained on them."""

    @property
    def fixed_positions(self) -> int | None:
        """The tokens of the longest sequence that the model can compute; None without a limit."""
        return self.positions if self.are_fixed else None

    def unknown_token(self, ids: Iterable[int]) -> int | None:
        """Return the largest of the token ids if the model has no embedding for it."""
        largest = max(ids, default=0)
        return largest if largest >= self.num_embeddings else None


def limits_in(model: "PreTrainedModel") -> InputLimits:
    """Return the limits of a model, loaded or on the meta device."""
    config = model.config.get_text_config()
    made_for: int | None = getattr(config, "max_position_embeddings", None)
    tables = list(_usable_rows(model, made_for)) if made_for else []
    return InputLimits(
        num_embeddings=_num_embeddings(model),
        positions=min([made_for, *tables]) if made_for else None,
        are_fixed=bool(tables),
    )


@lru_cache(maxsize=4)
def limits_of(base: BaseSource) -> InputLimits:
    """Return the limits of a base without loading its weights."""
    return limits_in(load_skeleton(base))


def check_embedded(
    sequences: Iterable[Sequence[int]],
    where: str,
    limits: InputLimits,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Check that the model has an embedding for each token of a row.

    Args:
        sequences: of token ids, those that the row consists of.
        where: the row's source and number, for the message.
        limits: of the model.
        tokenizer: that made the token ids.

    Raises:
        UserError: it has none for a token; the message begins with `where`.
    """
    unknown = [limits.unknown_token(ids) for ids in sequences]
    if (token := max((one for one in unknown if one is not None), default=None)) is not None:
        raise UserError(f"{where}: {describe_unknown(token, limits, tokenizer)}")


def describe_unknown(token: int, limits: InputLimits, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the message for a token that the model has no embedding for."""
    return (
        f"the tokenizer writes {tokenizer.convert_ids_to_tokens(token)!r} as token {token}, but "
        f"the model has embeddings for tokens 0 to {limits.num_embeddings - 1} only (the tokenizer "
        f"has {len(tokenizer)} tokens); use the tokenizer that the model was trained with, or "
        "resize the model's embeddings (resize_token_embeddings) and save it"
    )


def _num_embeddings(model: "PreTrainedModel") -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def _usable_rows(model: "PreTrainedModel", made_for: int) -> Iterator[int]:
    """Yield the number of usable rows of each table of positions.

    OPT and BART skip the first `offset` rows, which they add to the table's size. RoBERTa and
    models like it skip the rows up to the padding token's, which are part of the table's size.
    """
    from torch import nn

    words = model.get_input_embeddings()
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module is words:
            continue
        if module.num_embeddings - getattr(module, "offset", 0) == made_for:
            yield made_for - (0 if module.padding_idx is None else module.padding_idx + 1)
    for buffer in model.buffers():  # GPT-J precomputes the rotations of all positions
        if buffer.ndim == 2 and buffer.shape[0] == made_for:  # noqa: PLR2004 - [positions, size]
            yield made_for
