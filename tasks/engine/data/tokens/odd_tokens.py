"""What is odd about training rows as tokens: mostly prompt, truncated, or without an end."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice

from tasks.engine.data.splits import MOSTLY_PROMPT, SHOWN_ROWS, TRUNCATED, Oddity, Split
from tasks.engine.data.tokens.tokenization import DROPPED_OTHERWISE, Tokenized
from tasks.records import OddRows, RowPlace


class OddTokens:
    """What is odd about training rows as tokens, found while they are made.

    Args:
        split: the training rows.
        generates: whether the rows have prompts that a model answers.
    """

    def __init__(self, split: Split, *, generates: bool) -> None:
        self._split = split
        self._generates = generates
        self._counts: Counter[Oddity] = Counter()
        self._first: dict[tuple[Oddity, int], list[int]] = defaultdict(list)
        self._last: dict[Oddity, tuple[int, int]] = defaultdict(lambda: (-1, -1))

    def add(self, number: int, one: Tokenized) -> None:
        """Add a row of the source with this number."""
        for oddity in self._oddities(one):
            rows = self._first[oddity, number]
            # A conversation may become several rows, but is one in the source.
            if one.is_another and self._last[oddity] == (number, one.example.row):
                continue
            self._last[oddity] = (number, one.example.row)
            self._counts[oddity] += 1
            if len(rows) < SHOWN_ROWS:
                rows.append(one.example.row)

    def found(self) -> list[OddRows]:
        """Return what was found."""
        if self._counts[Oddity.TRUNCATED] <= TRUNCATED * len(self._split.examples):
            del self._counts[Oddity.TRUNCATED]
        return [
            OddRows(kind=oddity, num_rows=self._counts[oddity], first=tuple(self._places(oddity)))
            for oddity in Oddity
            if self._counts[oddity]
        ]

    def _places(self, oddity: Oddity) -> Iterator[RowPlace]:
        places = (
            RowPlace(source=part.name, row=row)
            for number, part in enumerate(self._split.by_source)
            for row in self._first[oddity, number]
        )
        return islice(places, SHOWN_ROWS)

    def _oddities(self, one: Tokenized) -> Iterator[Oddity]:
        counts = one.counts
        is_shortened = counts.get("num_shortened_answers") or counts.get("num_shortened_texts")
        is_lost = one.row is None and not any(counts.get(name) for name in DROPPED_OTHERWISE)
        if is_shortened or is_lost:
            yield Oddity.TRUNCATED
        if counts.get("num_endless_answers"):
            yield Oddity.ENDLESS
        if counts.get("num_completed_answers"):
            yield Oddity.COMPLETED
        if one.row and self._generates:
            num_tokens = sum(map(len, one.row.sequences))
            if one.row.num_trained_tokens < (1 - MOSTLY_PROMPT) * num_tokens:
                yield Oddity.MOSTLY_PROMPT
