"""Examples as tokens, with labels where the loss is; what is cut or lost is counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import ClassVar, Self

from tasks.config import DataSettings, LossOn, OnLostAnswer, Template
from tasks.engine.data.examples import Split
from tasks.engine.data.prompts import encode
from tasks.engine.data.rendering import Rendered, Renderer
from tasks.engine.data.row_formats import Example
from tasks.errors import UserError
from tasks.records import SplitRecord

IGNORED = -100
"""The label of a token that is not trained on (PyTorch's cross entropy skips it)."""

_EXAMPLES_AT_ONCE = 1000


@dataclass(frozen=True)
class TokenizedRow:
    """One row: `labels[i]` is `input_ids[i]` where that token is trained on, else -100."""

    input_ids: list[int]
    labels: list[int]
    labels_are_tokens: ClassVar[bool] = True
    """Whether labels are the row's own tokens, or something else that has to be kept beside."""

    @property
    def num_trained_tokens(self) -> int:
        """Count the tokens that a loss falls on; the first follows nothing, so it has none."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Give the sequences of tokens that the model reads."""
        return (self.input_ids,)


@dataclass(frozen=True)
class Tokenized:
    """What became of one example."""

    example: Example
    row: TokenizedRow | None
    """None where the example is dropped."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What happened on the way, by the fields of `SplitRecord`."""


@dataclass
class SplitCounts:
    """What is counted of a split, row by row."""

    split: Split
    num_rows: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    longest_tokens: int = 0
    num_dropped_rows: int = 0
    on_the_way: Counter[str] = field(default_factory=Counter)

    def add(self, one: Tokenized) -> None:
        """Count what became of one example."""
        self.on_the_way.update(one.counts)
        if one.row is None:
            self.num_dropped_rows += 1
            return
        lengths = [len(sequence) for sequence in one.row.sequences]
        self.num_rows += 1
        self.num_tokens += sum(lengths)
        self.num_trained_tokens += one.row.num_trained_tokens
        self.longest_tokens = max(self.longest_tokens, *lengths)

    def record(self) -> SplitRecord:
        """Return what was counted, with where the rows are from."""
        return SplitRecord(
            source=self.split.source,
            sha256=self.split.sha256,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_trained_tokens=self.num_trained_tokens,
            longest_tokens=self.longest_tokens,
            num_dropped_rows=self.num_dropped_rows,
            **self.on_the_way,
        )


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows of a split, the examples that they came from, and what happened on the way."""

    rows: Sequence[TokenizedRow]
    examples: Sequence[Example]
    record: SplitRecord

    @classmethod
    def of(cls, split: Split, tokenized: Iterable[Tokenized]) -> Self:
        """Hold in memory what a split became."""
        counts, rows, examples = SplitCounts(split), [], []
        for one in tokenized:
            counts.add(one)
            if one.row is not None:
                rows.append(one.row)
                examples.append(one.example)
        return cls(rows, examples, counts.record())


def tokenize_split(
    split: Split, renderer: Renderer, settings: DataSettings, *, positions: int | None = None
) -> Iterator[Tokenized]:
    """Tokenise a split's examples, one after the other.

    Args:
        split: the examples.
        renderer: how an example becomes text, with a fast tokenizer that tells where each token
            begins.
        settings: longest row, where the loss is, what to do with a lost answer.
        positions: tokens of the longest row that the model can compute; rows are held to it, too.

    Raises:
        UserError: a row's whole answer lies beyond `max_length` or the model's positions and the
            settings say `error`, or no token at all is left to train on.
    """
    limit = min(settings.max_length, positions or settings.max_length)
    num_kept = 0
    for example in split.examples:
        with naming(split.source):
            rendered = renderer.full(example)
        whole = _tokenize(rendered, renderer, settings.loss_on)
        row = TokenizedRow(whole.input_ids[:limit], whole.labels[:limit])
        is_kept = row.num_trained_tokens > 0
        if not is_kept and settings.on_lost_answer is OnLostAnswer.ERROR:
            raise _lost_answer(split, example, len(whole.input_ids), settings.max_length, limit)
        num_kept += is_kept
        is_shortened = 0 < row.num_trained_tokens < whole.num_trained_tokens
        counts = {**rendered.counts, "num_shortened_answers": int(is_shortened)}
        yield Tokenized(example, row if is_kept else None, counts)
    if not num_kept:
        raise UserError(f"{split.source}: no row has an answer within {limit} tokens")


def some_at_once(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Return examples by as many as a tokenizer takes at once without holding much."""
    left = iter(examples)
    while some := list(islice(left, _EXAMPLES_AT_ONCE)):
        yield some


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Name the source in a user's mistake that names a row only."""
    try:
        yield
    except UserError as mistake:
        raise UserError(f"{source}, {mistake}") from mistake


def shared_prefix_length(rows: Iterable[TokenizedRow]) -> int:
    """Count the tokens that all rows begin with and none is trained on.

    Each row keeps at least one untrained token of its own, from which its answer is predicted.
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


def _tokenize(rendered: Rendered, renderer: Renderer, loss_on: LossOn) -> TokenizedRow:
    # A chat template writes the special tokens itself.
    is_plain = renderer.template is Template.PLAIN
    ids, places = encode(renderer.tokenizer, rendered.text, adds_special_tokens=is_plain)
    spans = ((0, len(rendered.text)),) if loss_on is LossOn.ALL else rendered.answers
    labels = [
        # A token may begin in the prompt (`is ` + `Paris`: its space is part of the word), and one
        # of white space may have an empty span at its end, as GPT-NeoX's tokenizer trims them.
        token if any(a < end and start < b for a, b in spans) else IGNORED
        for token, (start, end) in zip(ids, places, strict=True)
    ]
    return TokenizedRow(ids, labels)


def _lost_answer(
    split: Split, example: Example, length: int, max_length: int, limit: int
) -> UserError:
    within, remedy = f"data.max_length {max_length}", f"raise max_length to {length}, "
    if limit < max_length:
        within, remedy = f"the model's {limit} positions", ""
    return UserError(
        f"{split.source}, row {example.row}: nothing of the answer is left within {within} (the "
        f"row has {length} tokens); {remedy}shorten the row, or set data.on_lost_answer to drop"
    )
