"""Guesses at which columns of a file are meant, by their names and their first values."""

from collections.abc import Sequence

from tasks.engine.data.rows.cells import is_empty
from tasks.engine.data.rows.row_sources import Row

_FIRST_ROWS = 1000
_WORDS = 3
"""Of the shortest sentence."""
_FEWEST = 4
"""Values of which some must repeat if they are classes."""
_LONGEST_CLASS = 80
_ASKED = (
    "prompt",
    "question",
    "query",
    "problem",
    "meaning",
    "meaning_representation",
    "mr",
    "article",
    "document",
    "dialogue",
    "input",
    "source",
)
"""Usual names of what is asked, the most telling first."""
_ANSWERED = (
    "completion",
    "answer",
    "response",
    "reply",
    "solution",
    "summary",
    "highlights",
    "translation",
    "output",
    "target",
    "ref",
)
_CLASSES = ("class", "category", "intent", "sentiment", "topic")
_RARELY_ASKED = {"input", "source"}
"""Beside `text`, these are mostly where it is from."""


def proposed_columns(row: Row) -> dict[str, str]:
    """Return the columns that look most like a question and its answer, by our names.

    Empty unless there is one of each kind.
    """
    return next(iter(_by_name(row)), {})


def possible_columns(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return what `data.columns` could be, the most likely first, for rows that fit no format.

    Columns are known by their names, or else by their content if just two hold sentences.
    """
    if named := _by_name(rows[0]):
        rare = [
            one
            for one in named
            if one.get("prompt") in _RARELY_ASKED and not is_prose(rows, one["prompt"])
        ]
        return [one for one in named if one not in rare] or named
    prose = [name for name in rows[0] if is_prose(rows, name)]
    if len(prose) != 2:  # noqa: PLR2004 - a question and its answer
        return []
    first, second = prose
    return [_pair(first, second), _pair(second, first)]


def columns_beside_text(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return what `data.columns` could be, the most likely first, for rows with a column `text`.

    An empty mapping is among them: the text alone.
    """
    given = _by_plain_name(rows[0])
    labels = [
        given[name]
        for name in (*_CLASSES, *_ANSWERED)
        if name in given and has_classes(rows, given[name])
    ]
    answers = [given[name] for name in _ANSWERED if name in given and given[name] not in labels]
    asked = [
        given[name]
        for name in _ASKED
        if name in given and (name not in _RARELY_ASKED or is_prose(rows, given[name]))
    ]
    known = {"text", *labels, *answers, *asked}
    prose = [name for name in rows[0] if name not in known and is_prose(rows, name)]
    likely = [
        *({"label": name} for name in labels),
        *(_pair("text", name) for name in answers),
        *(_pair(name, "text") for name in (*asked, *prose)),
    ]
    unlikely = [_pair("text", name) for name in (*labels, *asked, *prose)]
    return [*likely, {}, *unlikely]


def is_prose(rows: Sequence[Row], name: str) -> bool:
    """Return whether most of a column's first values are sentences, and mostly distinct."""
    values = _values(rows, name)
    sentences = [one for one in values if isinstance(one, str) and _is_sentence(one)]
    return 2 * len(sentences) >= max(len(values), 1) and 2 * len(set(sentences)) > len(sentences)


def has_classes(rows: Sequence[Row], name: str) -> bool:
    """Return whether a column's first values are short and few enough to be classes."""
    values = _values(rows, name)
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in values):
        return False
    names = {str(one) for one in values}
    are_few = len(values) < _FEWEST or 2 * len(names) <= len(values)
    return len(names) > 1 and are_few and max(map(len, names)) <= _LONGEST_CLASS


def _values(rows: Sequence[Row], name: str) -> list[object]:
    return [row.get(name) for row in rows[:_FIRST_ROWS] if not is_empty(row.get(name))]


def _is_sentence(text: str) -> bool:
    num_words = sum(any(map(str.isalpha, word)) for word in text.split())
    # Chinese, Japanese and Thai are written without spaces.
    return num_words >= _WORDS or sum(map(_is_unspaced, text)) >= 2 * _WORDS


def _is_unspaced(character: str) -> bool:
    return character.isalpha() and (character >= "\u2e80" or "\u0e00" <= character <= "\u0e7f")


def _by_name(row: Row) -> list[dict[str, str]]:
    given = _by_plain_name(row)
    asked, answered = (
        [given[name] for name in usual if name in given] for usual in (_ASKED, _ANSWERED)
    )
    found = [_pair(question, answer) for question in asked for answer in answered]
    if "instruction" not in given:
        return found
    beside = {"input": given["context"]} if "context" in given and "input" not in given else {}
    roles = ({"instruction": given["instruction"], **beside, "output": one} for one in answered)
    return [*map(_renamed_only, roles), *found]


def _pair(question: str, answer: str) -> dict[str, str]:
    return _renamed_only({"prompt": question, "completion": answer})


def _renamed_only(columns: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if theirs != ours}


def _by_plain_name(row: Row) -> dict[str, str]:
    """Return the names of a row's columns by what they are in lower case."""
    return {name.casefold(): name for name in row}
