"""Rows that are probably mistakes: counted, and reported before training with the first of them.

None is an error, as each can be meant. Only hashes and row numbers are kept, so that a million rows
take some tens of megabytes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tasks.engine.data.mixing import DrawnRows, Split
from tasks.records import OddRows, RowPlace

if TYPE_CHECKING:
    from tasks.engine.data.tokenization import Tokenized

MOSTLY_PROMPT = 0.95
"""Share of prompt tokens above which a row is odd: under one token in twenty teaches anything, so a
shorter prompt would train several times as many rows in the same time."""

TRUNCATED = 0.02
"""Share of truncated training rows above which they are odd: a few outliers are expected, but one
answer in fifty without its end is often enough to teach the model to break off."""

_SHOWN_ROWS = 5


class Oddity(StrEnum):
    """What can be odd about a row."""

    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    MOSTLY_PROMPT = "mostly_prompt"
    ENDLESS = "endless"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    TRAINED = "held_out_and_trained"


_TEXTS = {
    Oddity.DUPLICATE: "{} training rows repeat an earlier one, so they are learned several times",
    Oddity.CONTRADICTION: "{} training rows have the prompt of another, but a different answer",
    Oddity.MOSTLY_PROMPT: f"{{}} training rows are mostly prompt: over {MOSTLY_PROMPT:.0%} of "
    "their tokens",
    Oddity.ENDLESS: "{} training rows have no end token, as the tokenizer has none: generation "
    "continues up to max_new_tokens",
    Oddity.COMPLETED: "{} training rows have an answer that the chat template does not end; an end "
    "token is appended so that generation stops",
    Oddity.TRUNCATED: f"{{}} training rows, over {TRUNCATED:.0%}, are truncated; raise "
    "data.max_length if the model has more positions",
    Oddity.TRAINED: "{} held-out rows are also training rows, so the held-out loss is too "
    "optimistic",
}


def odd_text(odd: OddRows) -> str:
    """Return the warning about odd rows, with the first of them."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for place in odd.first:
        by_source[place.source].append(place.row)
    shown = "; ".join(f"{name} {', '.join(map(str, rows))}" for name, rows in by_source.items())
    more = ", …" if odd.num_rows > len(odd.first) else ""
    return f"{_TEXTS[Oddity(odd.kind)].format(f'{odd.num_rows:,}')} (rows of {shown}{more})"


def odd_contents(trained: Sequence[DrawnRows], held_out: Sequence[DrawnRows]) -> list[OddRows]:
    """Find duplicates, contradictions, and held-out rows that are trained on.

    Args:
        trained: the training rows of each source.
        held_out: the held-out rows of each source.
    """
    asked = np.concatenate([one.rows.asked(one.places) for one in trained])
    learned = np.concatenate([one.rows.learned(one.places) for one in trained])
    contents = np.concatenate([one.contents() for one in trained])
    leaked = [np.isin(one.contents(), contents) for one in held_out]
    found = [
        _odd(Oddity.DUPLICATE, trained, _repeated(learned)),
        _odd(Oddity.CONTRADICTION, trained, _contradicted(asked, learned)),
        _odd(Oddity.TRAINED, held_out, np.concatenate(leaked) if leaked else np.zeros(0, bool)),
    ]
    return [one for one in found if one.num_rows]


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

    def add(self, number: int, one: "Tokenized") -> None:
        """Add a row of the source with this number."""
        for oddity in self._oddities(one):
            rows = self._first[oddity, number]
            # A conversation may become several rows, but is one in the source.
            if one.is_another and self._last[oddity] == (number, one.example.row):
                continue
            self._last[oddity] = (number, one.example.row)
            self._counts[oddity] += 1
            if len(rows) < _SHOWN_ROWS:
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
        return islice(places, _SHOWN_ROWS)

    def _oddities(self, one: "Tokenized") -> Iterator[Oddity]:
        counts = one.counts
        is_shortened = counts.get("num_shortened_answers") or counts.get("num_shortened_texts")
        if is_shortened or not (one.row or counts.get("num_untrained_rows")):
            yield Oddity.TRUNCATED
        if counts.get("num_endless_answers"):
            yield Oddity.ENDLESS
        if counts.get("num_completed_answers"):
            yield Oddity.COMPLETED
        if one.row and self._generates:
            num_tokens = sum(map(len, one.row.sequences))
            if one.row.num_trained_tokens < (1 - MOSTLY_PROMPT) * num_tokens:
                yield Oddity.MOSTLY_PROMPT


def _odd(oddity: Oddity, drawn: Sequence[DrawnRows], are_odd: "np.ndarray") -> OddRows:
    """Return the rows of the sources, one after the other, for which `are_odd` is true."""
    ends = np.cumsum([len(one.places) for one in drawn])
    first = []
    for at in np.flatnonzero(are_odd)[:_SHOWN_ROWS].tolist():
        number = int(np.searchsorted(ends, at, side="right"))
        one, before = drawn[number], int(ends[number]) - len(drawn[number].places)
        first.append(RowPlace(source=one.name, row=one.places[at - before] + 1))
    return OddRows(kind=oddity, num_rows=int(are_odd.sum()), first=tuple(first))


def _repeated(learned: "np.ndarray") -> "np.ndarray":
    """Return whether each row equals an earlier one, bool [rows]."""
    repeats = np.ones(len(learned), dtype=bool)
    repeats[np.unique(learned, return_index=True)[1]] = False
    return repeats


def _contradicted(asked: "np.ndarray", learned: "np.ndarray") -> "np.ndarray":
    """Return whether a row with the same prompt has another answer, bool [rows]."""
    order = np.lexsort((learned, asked))
    prompts, answers = asked[order], learned[order]
    differ = (prompts[1:] == prompts[:-1]) & (answers[1:] != answers[:-1])
    return np.isin(asked, prompts[1:][differ])
