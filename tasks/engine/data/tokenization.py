"""Examples as tokens, with labels where the loss is; what is cut or lost is counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Self

from tasks.config import DataSettings, LossOn, OnLostAnswer, Template
from tasks.engine.data.examples import Split
from tasks.engine.data.prompts import encode
from tasks.engine.data.rendering import Rendered, Renderer
from tasks.engine.data.row_formats import Example
from tasks.errors import UserError
from tasks.records import SplitRecord

IGNORED = -100
"""The label of a token that is not trained on (PyTorch's cross entropy skips it)."""


@dataclass(frozen=True)
class TokenizedRow:
    """One row: `labels[i]` is `input_ids[i]` where that token is trained on, else -100."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained_tokens(self) -> int:
        """Count the tokens that a loss falls on; the first follows nothing, so it has none."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Give the sequences of tokens that the model reads."""
        return (self.input_ids,)


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows of a split, the examples that they came from, and what happened on the way."""

    rows: list[TokenizedRow]
    examples: list[Example]
    record: SplitRecord

    @classmethod
    def of(
        cls,
        split: Split,
        rows: list[TokenizedRow],
        examples: Sequence[Example] | None = None,
        **counts: int,
    ) -> Self:
        """Put together what a split became.

        Args:
            split: the examples.
            rows: what became of them.
            examples: those that the rows came from, if not all.
            counts: what was cut or lost, by the record's names.
        """
        lengths = [[len(sequence) for sequence in row.sequences] for row in rows]
        record = SplitRecord(
            source=split.source,
            sha256=split.sha256,
            num_rows=len(rows),
            num_tokens=sum(map(sum, lengths)),
            num_trained_tokens=sum(row.num_trained_tokens for row in rows),
            longest_tokens=max(map(max, lengths)),
            num_dropped_rows=len(split.examples) - len(rows),
            **counts,
        )
        return cls(rows, list(split.examples if examples is None else examples), record)


def tokenize_split(
    split: Split,
    renderer: Renderer,
    settings: DataSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenizedSplit:
    """Tokenise a split's examples.

    Args:
        split: the examples.
        renderer: how an example becomes text, with a fast tokenizer that tells where each token
            begins.
        settings: longest row, where the loss is, what to do with a lost answer.
        on_progress: told the rows done and the rows in all.

    Raises:
        UserError: a row's whole answer lies beyond `max_length` and the settings say `error`, or
            no token at all is left to train on.
    """
    kept: list[tuple[Example, TokenizedRow]] = []
    counts: Counter[str] = Counter()
    for number, example in enumerate(split.examples, 1):
        with naming(split.source):
            rendered = renderer.full(example)
        counts.update(rendered.counts)
        whole = _tokenize(rendered, renderer, settings.loss_on)
        row = TokenizedRow(
            whole.input_ids[: settings.max_length], whole.labels[: settings.max_length]
        )
        counts["num_shortened_answers"] += 0 < row.num_trained_tokens < whole.num_trained_tokens
        if row.num_trained_tokens:
            kept.append((example, row))
        elif settings.on_lost_answer is OnLostAnswer.ERROR:
            raise _lost_answer(split, example, len(whole.input_ids), settings.max_length)
        if on_progress:
            on_progress(number, len(split.examples))
    if not kept:
        raise UserError(f"{split.source}: no row has an answer within {settings.max_length} tokens")
    return TokenizedSplit.of(
        split,
        [row for _, row in kept],
        [example for example, _ in kept],
        **counts,
    )


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
    rows = list(rows)
    # What the smallest and the largest sequence share, all in between share, too.
    smallest, largest = (pick(row.input_ids for row in rows) for pick in (min, max))
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(smallest, largest, strict=False))
    )
    untrained = (next(i for i, x in enumerate(r.labels) if x != IGNORED) for r in rows)
    return max(0, min(common, min(untrained) - 1))


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


def _lost_answer(split: Split, example: Example, length: int, max_length: int) -> UserError:
    return UserError(
        f"{split.source}, row {example.row}: nothing of the answer is left within data.max_length "
        f"{max_length} (the row has {length} tokens); raise max_length to {length}, shorten the "
        "row, or set data.on_lost_answer to drop"
    )
