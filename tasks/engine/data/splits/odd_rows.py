"""Rows that are probably mistakes: counted, and reported before training with the first of them.

None is an error, as each can be meant. Only hashes and row numbers are kept, so that a million rows
take some tens of megabytes.
"""

from collections import defaultdict
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from tasks.config import JUDGED, PREFERENCES
from tasks.engine.data.splits.mixing import DrawnRows
from tasks.records import OddRows, RowPlace

MOSTLY_PROMPT = 0.95
"""Share of prompt tokens above which a row is odd: under one token in twenty teaches anything, so a
shorter prompt would train several times as many rows in the same time."""

TRUNCATED = 0.02
"""Share of truncated training rows above which they are odd: a few outliers are expected, but one
answer in fifty without its end is often enough to teach the model to break off."""

SHOWN_ROWS = 5
"""Of each oddity."""


class Oddity(StrEnum):
    """What can be odd about a row."""

    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    REVERSED = "reversed"
    DISPUTED = "disputed"
    MOSTLY_PROMPT = "mostly_prompt"
    ENDLESS = "endless"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    TRAINED = "held_out_and_trained"


_TEXTS = {
    Oddity.DUPLICATE: "{} training rows repeat an earlier one, so they are learned several times",
    Oddity.CONTRADICTION: "{} training rows have the prompt of another, but a different answer",
    Oddity.REVERSED: "{} training rows prefer the answer that another one rejects",
    Oddity.DISPUTED: "{} training rows have an answer that is both desirable and not",
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
    row_format, contradiction = trained[0].row_format, Oddity.CONTRADICTION
    if row_format in PREFERENCES:
        contradiction = Oddity.REVERSED
    elif row_format in JUDGED:
        contradiction = Oddity.DISPUTED
    leaked = [np.isin(one.contents(), contents) for one in held_out]
    found = [
        _odd(Oddity.DUPLICATE, trained, _repeated(learned)),
        _odd(contradiction, trained, _contradicted(asked, learned)),
        _odd(Oddity.TRAINED, held_out, np.concatenate(leaked) if leaked else np.zeros(0, bool)),
    ]
    return [one for one in found if one.num_rows]


def _odd(oddity: Oddity, drawn: Sequence[DrawnRows], are_odd: "np.ndarray") -> OddRows:
    """Return the rows of the sources, one after the other, for which `are_odd` is true."""
    ends = np.cumsum([len(one.places) for one in drawn])
    first = []
    for at in np.flatnonzero(are_odd)[:SHOWN_ROWS].tolist():
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
