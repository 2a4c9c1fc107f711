"""Pairs of answers as tokens: two rows of one conversation, the chosen answer's first."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tasks.config import DataSettings, LossOn, OnLostAnswer
from tasks.engine.data.rendering import Rendered, Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens.tokenization import (
    Tokenized,
    TokenizedRow,
    lost_answer,
    naming,
    num_shortened,
    tokenized_row,
    truncated,
)
from tasks.errors import UserError


def tokenize_pairs(
    split: Split, renderer: Renderer, settings: DataSettings, *, positions: int | None = None
) -> Iterator[Tokenized]:
    """Tokenize a split's pairs, each as the row of its chosen and that of its rejected answer.

    Args:
        split: the pairs.
        renderer: how an example becomes text; see `tokenize_split`.
        settings: longest row, and what to do with a pair that can't be compared.
        positions: tokens of the longest row that the model can compute; longer rows are truncated.

    Raises:
        UserError: both answers of a pair are the same, or one lies entirely beyond `max_length` or
            the model's positions, and `on_lost_answer` is `error`; or all pairs are dropped.
    """
    limit = min(settings.max_length, positions or settings.max_length)
    num_kept = 0
    for example in split.examples:
        if reason := _unusable(example, renderer, settings):
            yield Tokenized(example, None, {reason: 1})
            continue
        with naming(split.source):
            sides = (example, example.as_rejected)
            rendered = [_only_row(renderer.rows(side), example) for side in sides]
        full = [tokenized_row(one, renderer, LossOn.COMPLETION) for one in rendered]
        cut = [truncated(one, limit) for one in full]
        is_lost = not all(one.num_trained_tokens for one in cut)
        is_equal = cut[0].input_ids == cut[1].input_ids
        if is_lost or is_equal:
            if settings.on_lost_answer is OnLostAnswer.ERROR:
                raise _refused(split, example, full, settings.max_length, limit)
            reasons = {} if is_lost else {"num_equal_pairs": 1}
            yield Tokenized(example, None, reasons)
            continue
        num_kept += 1
        yield Tokenized(example, cut[0], _counts(rendered, cut, full))
        yield Tokenized(example, cut[1], is_another=True, is_rejected=True)
    if not num_kept:
        raise UserError(
            f"{split.source}: no pair has two different answers within {limit} tokens "
            "(data.max_length, or the model's positions); correct the pairs, shorten the prompts, "
            "or raise data.max_length"
        )


def _unusable(example: Example, renderer: Renderer, settings: DataSettings) -> str | None:
    """Return the count of the pairs that are dropped for the same reason; None for a usable one."""
    if not example.rejected:
        return "num_empty_pairs"
    sides = (example, example.as_rejected)
    drops = settings.on_lost_answer is OnLostAnswer.DROP
    return "num_untrained_rows" if drops and any(map(renderer.trains_nothing, sides)) else None


def _only_row(rows: Sequence[Rendered], example: Example) -> Rendered:
    if len(rows) > 1:
        raise UserError(
            f"row {example.row}: the chat template writes earlier answers otherwise than they are "
            "generated, so the answers after the prompt would be several rows; keep one answer in "
            "chosen and in rejected, or set data.turns to last"
        )
    return rows[0]


def _counts(
    rendered: Sequence[Rendered], cut: Sequence[TokenizedRow], full: Sequence[TokenizedRow]
) -> Counter[str]:
    counts = Counter(
        num_shortened_answers=num_shortened(cut, full), num_chosen_tokens=cut[0].num_trained_tokens
    )
    for one in rendered:
        counts.update(one.counts)
    counts["num_untrained_answers"] = rendered[0].counts.get("num_untrained_answers", 0)
    return counts


def _refused(
    split: Split, example: Example, full: Sequence[TokenizedRow], max_length: int, limit: int
) -> UserError:
    cut = [truncated(one, limit) for one in full]
    if not all(one.num_trained_tokens for one in cut):
        longest = max(len(one.input_ids) for one in full)
        return lost_answer(split, example, longest, max_length, limit)
    where = f"{split.source}, row {example.row}"
    if full[0].input_ids == full[1].input_ids:
        return UserError(
            f"{where}: chosen and rejected become the same tokens, so neither can be preferred; "
            "remove the row, or set data.on_lost_answer to drop"
        )
    return UserError(
        f"{where}: chosen and rejected differ only beyond {limit} tokens (data.max_length, or the "
        "model's positions); raise data.max_length, shorten the row, or set data.on_lost_answer to "
        "drop"
    )
