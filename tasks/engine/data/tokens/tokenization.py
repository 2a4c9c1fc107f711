"""Examples as tokens, with labels where the loss is; truncated and dropped answers are counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import ClassVar, Self

import numpy as np

from tasks.config import DataSettings, LossOn, OnLostAnswer, Template
from tasks.engine.data.rendering import Rendered, Renderer, encode
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import Split
from tasks.errors import UserError
from tasks.records import SplitRecord

IGNORED = -100
"""The label of a token that is not trained on (PyTorch's cross entropy skips it)."""

DROPPED_OTHERWISE = ("num_untrained_rows", "num_equal_pairs", "num_empty_pairs")
"""The counts of rows that are dropped, but not because an answer is truncated away."""

_EXAMPLES_AT_ONCE = 1000


@dataclass(frozen=True)
class TokenizedRow:
    """One row: `labels[i]` is `input_ids[i]` where that token is trained on, else -100."""

    input_ids: list[int]
    labels: list[int]
    conversation: int | None = field(default=None, compare=False)
    """A number that the rows of one conversation have in common; they follow each other."""
    labels_are_tokens: ClassVar[bool] = True
    """Whether labels are the row's own tokens; otherwise they have to be stored as well."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens with a loss; the first token has none, as nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """The sequences of token ids that the model reads."""
        return (self.input_ids,)


@dataclass(frozen=True)
class Tokenized:
    """One row of an example as tokens, or an example that is dropped."""

    example: Example
    row: TokenizedRow | None
    """None if the example is dropped."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What to add to the fields of `SplitRecord` that count changes to examples."""
    is_another: bool = False
    """Whether it is one more row of the example before."""
    is_rejected: bool = False
    """Whether it has the rejected answer of a pair, whose other half is the row before."""
    source: int = 0
    """The number of the source that the example is of."""


@dataclass
class SplitCounts:
    """The counts of a split, added up row by row."""

    split: Split
    template: str = ""
    num_examples: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    longest_tokens: int = 0
    num_dropped_rows: int = 0
    changes: Counter[str] = field(default_factory=Counter)

    def add(self, one: Tokenized) -> None:
        """Add one row to the counts."""
        self.changes.update(one.counts)
        if one.row is None:
            self.num_dropped_rows += not any(one.counts.get(name) for name in DROPPED_OTHERWISE)
            return
        lengths = [len(sequence) for sequence in one.row.sequences]
        self.num_examples += not one.is_another
        self.num_rows += not one.is_rejected
        self.num_tokens += sum(lengths)
        self.num_trained_tokens += one.row.num_trained_tokens
        self.longest_tokens = max(self.longest_tokens, *lengths)

    def record(self) -> SplitRecord:
        """Return the counts, with the split's source and hash."""
        return SplitRecord(
            source=self.split.source,
            name=self.split.name,
            is_replayed=self.split.is_replayed,
            row_format=self.split.row_format.value if self.split.row_format else "",
            template=self.template,
            sha256=self.split.sha256,
            num_examples=self.num_examples,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_trained_tokens=self.num_trained_tokens,
            longest_tokens=self.longest_tokens,
            num_dropped_rows=self.num_dropped_rows,
            **self.changes,
        )


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows of a split, the examples that they came from, and the counts."""

    rows: Sequence[TokenizedRow]
    examples: Sequence[Example]
    record: SplitRecord
    sources: "np.ndarray"
    """The number of the source that each row is of, int64 [rows]."""
    renderers: tuple[Renderer, ...] = ()
    """Of the rows of each source."""

    @classmethod
    def of(cls, split: Split, tokenized: Iterable[Tokenized]) -> Self:
        """Return the rows of a split in memory, and not in a token file."""
        counts, rows, examples = SplitCounts(split), [], []
        for one in tokenized:
            counts.add(one)
            if one.row is not None:
                rows.append(one.row)
                examples.append(one.example)
        return cls(rows, examples, counts.record(), np.zeros(len(rows), dtype=np.int64))


def tokenize_split(
    split: Split, renderer: Renderer, settings: DataSettings, *, positions: int | None = None
) -> Iterator[Tokenized]:
    """Tokenize a split's examples, one after the other, each as one row or several.

    Args:
        split: the examples.
        renderer: how an example becomes text; its tokenizer must be a fast one, which returns
            character offsets.
        settings: longest row, where the loss is, what to do with a lost answer.
        positions: tokens of the longest row that the model can compute; longer rows are truncated.

    Raises:
        UserError: a row's answer lies entirely beyond `max_length` or the model's positions and
            `on_lost_answer` is `error`, or all rows are dropped.
    """
    limit = min(settings.max_length, positions or settings.max_length)
    num_kept = num_untrained = 0
    for example in split.examples:
        with naming(split.source):
            _check_loss(example, settings.loss_on)
            if settings.on_lost_answer is OnLostAnswer.DROP and renderer.trains_nothing(example):
                num_untrained += 1
                yield Tokenized(example, None, {"num_untrained_rows": 1})
                continue
            rendered = renderer.rows(example)
        full = [tokenized_row(one, renderer, settings.loss_on) for one in rendered]
        cut = [truncated(one, limit) for one in full]
        kept = [one for one in cut if one.num_trained_tokens > 0]
        if not kept and settings.on_lost_answer is OnLostAnswer.ERROR:
            raise lost_answer(split, example, len(full[-1].input_ids), settings.max_length, limit)
        num_kept += len(kept)
        counts = Counter(num_shortened_answers=num_shortened(cut, full) if kept else 0)
        for one in rendered:
            counts.update(one.counts)
        if settings.loss_on is LossOn.ALL:
            counts["num_untrained_answers"] = 0
        yield Tokenized(example, kept[0] if kept else None, counts)
        for row in kept[1:]:
            yield Tokenized(example, row, is_another=True)
    if num_untrained == len(split.examples):
        raise UserError(
            f"{split.source}: no row has an answer that is trained on, as their weights are 0"
        )
    if not num_kept:
        raise UserError(
            f"{split.source}: no row has an answer within {limit} tokens (data.max_length, or the "
            "model's positions); shorten the prompts, or raise data.max_length"
        )


def some_at_once(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in lists, each small enough to be tokenized at once."""
    left = iter(examples)
    while some := list(islice(left, _EXAMPLES_AT_ONCE)):
        yield some


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Add the source's name to a UserError that names only the row."""
    try:
        yield
    except UserError as mistake:
        raise UserError(f"{source}, {mistake}") from mistake


def shared_prefix_length(rows: Iterable[TokenizedRow]) -> int:
    """Return the number of tokens that all rows begin with and none is trained on.

    At least one untrained token stays outside of the prefix: it predicts the row's first trained
    token, so each row needs one of its own.
    """
    common: list[int] | None = None
    first_trained = 0
    for row in rows:
        untrained = sum(1 for _ in takewhile(lambda label: label == IGNORED, row.labels))
        if common is None:
            common, first_trained = row.input_ids, untrained
        first_trained = min(first_trained, untrained)
        pairs = zip(common, row.input_ids[:first_trained], strict=False)
        common = common[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
        if not common:
            break
    return max(0, min(len(common or []), first_trained - 1))


def truncated(row: TokenizedRow, limit: int) -> TokenizedRow:
    """Return a row without the tokens beyond a limit."""
    if len(row.input_ids) <= limit:
        return row
    return TokenizedRow(row.input_ids[:limit], row.labels[:limit])


def num_shortened(cut: Sequence[TokenizedRow], full: Sequence[TokenizedRow]) -> int:
    """Return the number of rows that lack a part of their answers."""
    pairs = [(one, whole) for one, whole in zip(cut, full, strict=True) if one is not whole]
    return sum(one.num_trained_tokens < whole.num_trained_tokens for one, whole in pairs)


def tokenized_row(rendered: Rendered, renderer: Renderer, loss_on: LossOn) -> TokenizedRow:
    """Return a rendered row as tokens, with labels where the loss is."""
    # A chat template writes the special tokens itself; without one the tokenizer adds them.
    is_plain = renderer.template is Template.PLAIN
    ids, places = encode(renderer.tokenizer, rendered.text, adds_special_tokens=is_plain)
    # Of an example with several rows, the last one has all of the conversation.
    is_all = loss_on is LossOn.ALL and rendered.is_complete
    spans = ((0, len(rendered.text)),) if is_all else rendered.answers
    labels = [
        # A token may begin in the prompt (`is ` + `Paris`: the space belongs to the word's token).
        # A whitespace token may have an empty span, as GPT-NeoX's tokenizer trims offsets; it then
        # lies at the end of the whitespace.
        token if any(a < end and start < b for a, b in spans) else IGNORED
        for token, (start, end) in zip(ids, places, strict=True)
    ]
    return TokenizedRow(ids, labels)


def _check_loss(example: Example, loss_on: LossOn) -> None:
    is_partial = any(
        one.role == "assistant" and not one.is_trained and not one.is_context
        for one in example.messages
    )
    if loss_on is LossOn.ALL and is_partial:
        raise UserError(
            f"row {example.row}: an answer has weight 0, but data.loss_on is all; use completion"
        )


def lost_answer(
    split: Split, example: Example, length: int, max_length: int, limit: int
) -> UserError:
    """Return the error for an answer that lies beyond the limit of its row's tokens."""
    within, remedy = f"data.max_length {max_length}", f"raise max_length to {length}, "
    if limit < max_length:
        within, remedy = f"the model's {limit} positions", ""
    return UserError(
        f"{split.source}, row {example.row}: the answer lies entirely beyond {within} (the row has "
        f"{length} tokens); {remedy}shorten the row, or set data.on_lost_answer to drop"
    )
