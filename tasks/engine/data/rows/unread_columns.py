"""Columns of rows, and keys of messages, that are not read.

If one changes what the row means, the row is refused: without it, the row would teach something
that its author did not write. All others are counted, and reported once with their counts. Null
and empty values are treated as absent.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tasks.config.data import ANSWERED, GENERATIVE, JUDGED, PREFERENCES, RowFormat
from tasks.engine.data.rows.cells import is_empty
from tasks.engine.data.rows.json_values import from_cell
from tasks.engine.data.rows.messages import READ_KEYS, REASONING
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.tools import TOOL_COLUMNS
from tasks.engine.excerpts import excerpt

_ALL = tuple(RowFormat)

PAIR = ("chosen", "rejected")
PROMPTS = ("prompt", "conversations", "conversation")
"""The columns that the prompt of a pair of messages may be in."""
LISTS = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.SHAREGPT: ("conversations", "conversation"),
    RowFormat.CONVERSATIONAL: ("prompt", "completion"),
    RowFormat.CONVERSATIONAL_PREFERENCE: (*PROMPTS, *PAIR),
    RowFormat.CONVERSATIONAL_UNPAIRED: ("prompt", "completion"),
}
"""The columns that are lists of messages."""

_OF_ANSWERED = {"system", "weight", *TOOL_COLUMNS}
_WHO_ANSWERED = "adapter_version"
"""The column in which `adapterflow corrections` notes whose answer was judged, for people."""
_READ = {
    RowFormat.MESSAGES: {*LISTS[RowFormat.MESSAGES], *_OF_ANSWERED},
    RowFormat.SHAREGPT: {*LISTS[RowFormat.SHAREGPT], *_OF_ANSWERED},
    RowFormat.PROMPT_COMPLETION: {"prompt", "completion", *REASONING, *_OF_ANSWERED},
    RowFormat.CONVERSATIONAL: {*LISTS[RowFormat.CONVERSATIONAL], *_OF_ANSWERED},
    RowFormat.INSTRUCTION: {
        "instruction",
        "input",
        "output",
        "history",
        *REASONING,
        *_OF_ANSWERED,
    },
    RowFormat.PREFERENCE: {"prompt", *PAIR, *_OF_ANSWERED, _WHO_ANSWERED},
    RowFormat.CONVERSATIONAL_PREFERENCE: {
        *LISTS[RowFormat.CONVERSATIONAL_PREFERENCE],
        *_OF_ANSWERED,
        _WHO_ANSWERED,
    },
    RowFormat.UNPAIRED: {
        "prompt",
        "completion",
        "label",
        *REASONING,
        *_OF_ANSWERED,
        _WHO_ANSWERED,
    },
    RowFormat.CONVERSATIONAL_UNPAIRED: {
        "prompt",
        "completion",
        "label",
        *_OF_ANSWERED,
        _WHO_ANSWERED,
    },
    RowFormat.TEXT: {"text"},
    RowFormat.LABELLED: {"text", "label"},
    RowFormat.TAGGED: {"tokens", "tags"},
}
_MULTI_TURN = (*ANSWERED, *PREFERENCES, *JUDGED)
_MOST_SHOWN = 50


def _always(value: object) -> bool:  # noqa: ARG001 - one of several tests of a value
    return True


def _is_truth_value(value: object) -> bool:
    return str(value).strip().lower() in {"true", "false"}


def _is_not_one(value: object) -> bool:
    try:
        return float(str(value)) != 1
    except ValueError:  # text such as "3 kg" is about another kind of weight
        return str(value).strip().lower() in {"false", "no"}


@dataclass(frozen=True)
class _Meaning:
    """Names that change what a row means, and what to do about them."""

    columns: tuple[str, ...]
    """The names of columns."""
    formats: tuple[RowFormat, ...]
    """The formats of rows in which they do."""
    advice: str
    is_asked: bool
    """Whether it changes the question, and not only how it is to be answered."""
    matters: Callable[[object], bool] = _always
    """Whether a value changes what the row means."""


_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_MEDIA_ADVICE = "only text is read; remove such rows, or remove it to train on the text alone"
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MEANINGS = (
    _Meaning(
        columns=("tool_calls", "function_call"),
        formats=_MULTI_TURN,
        advice="calls of tools are read from messages only; write them as tool_calls of the "
        "assistant's message",
        is_asked=True,
    ),
    _Meaning(
        columns=("reasoning_content", "thinking"),
        formats=(*LISTS, RowFormat.PREFERENCE),
        advice="reasoning is read from the messages; write it as reasoning_content of the "
        "assistant's message, or remove it to train on the answer alone",
        is_asked=False,
    ),
    _Meaning(
        columns=("chat_template_kwargs",),
        formats=_MULTI_TURN,
        advice="only the messages and the tools of a row are passed to the chat template; remove "
        "the column",
        is_asked=True,
    ),
    _Meaning(
        columns=("history",),
        formats=_MULTI_TURN,
        advice="earlier turns are read beside an instruction only; write the row as messages, a "
        "list of objects with role (system, user, assistant) and content",
        is_asked=True,
    ),
    _Meaning(columns=_MEDIA, formats=_ALL, advice=_MEDIA_ADVICE, is_asked=True),
    _Meaning(
        columns=PAIR,
        formats=(*GENERATIVE, *JUDGED),
        advice="to learn which of two answers is preferred, set training.objective: dpo; to "
        "imitate the chosen answers, write them as completion, or as the last of the messages, and "
        "remove chosen and rejected",
        is_asked=False,
    ),
    _Meaning(
        columns=("label", "kto_tag"),
        formats=GENERATIVE,
        advice="whether an answer is good is not read, so bad ones would be imitated; to learn "
        "from both kinds, set training.objective: kto (the column is label), or keep only the rows "
        "with a good answer, without this column",
        is_asked=False,
        matters=_is_truth_value,
    ),
    _Meaning(
        columns=("weight", "loss_weight", "loss_scale"),
        formats=_ALL,
        advice="all rows have the weight 1; remove what should not be learned, and the weights",
        is_asked=False,
        matters=_is_not_one,
    ),
)
_BY_COLUMN = {name: one for one in _MEANINGS for name in one.columns}
_BY_KEY = {
    **dict.fromkeys(_MEDIA, _MEDIA_ADVICE),
    **dict.fromkeys(
        TOOL_COLUMNS, "the tools of a row are read from its column tools; write them there"
    ),
}


def refusal(row: Row, row_format: RowFormat, *, asks: bool = False) -> str | None:
    """Return why a row can't be used without some column; None if it can.

    Args:
        row: the row.
        row_format: which of its columns are read.
        asks: whether the row is only asked, so that columns about its answer do not matter.
    """
    for name in _unread(row, _READ[row_format]):
        meaning = _BY_COLUMN.get(name)
        is_meant = meaning and row_format in meaning.formats and (meaning.is_asked or not asks)
        if meaning and is_meant and meaning.matters(row[name]):
            return f"there is a column {name}: {meaning.advice}"
        # The names of such columns are many, but the placeholder says that one is meant.
        if name.startswith(_MEDIA[::2]) and (found := _PLACEHOLDER.search(str(row))):
            return f"there is a column {excerpt(name)}, and {found[0]} in the text: {_MEDIA_ADVICE}"
    return None


def message_refusal(message: Mapping[str, object]) -> str | None:
    """Return why a message can't be used without some key; None if it can."""
    unread = _unread(message, READ_KEYS)
    if "reasoning_details" in unread and all(is_empty(message.get(one)) for one in REASONING):
        return "has the key reasoning_details, which is not read: write it as reasoning_content"
    for name in unread:
        if advice := _BY_KEY.get(name):
            return f"has the key {name}: {advice}"
    return None


def count_unread(rows: Iterable[Row], row_format: RowFormat) -> Counter[str]:
    """Count the rows with a value that is not read, by the column's or key's name."""
    found: Counter[str] = Counter()
    for row in rows:
        for name in dict.fromkeys(_unread_names(row, row_format)):
            found[excerpt(name)] += 1
    return found


def columns_unread(rows: Iterable[Row], row_format: RowFormat) -> dict[str, int]:
    """Return the number of rows with a value in each column that is not read, be it 0."""
    kept = list(rows)
    names = dict.fromkeys(excerpt(name) for row in kept for name in row.keys() - _READ[row_format])
    return {**dict.fromkeys(sorted(names), 0), **count_unread(kept, row_format)}


def unread_text(unread: Mapping[str, int]) -> str:
    """Return the names and counts as a line of text."""
    shown = [f"{name} ({count:,} rows)" for name, count in islice(unread.items(), _MOST_SHOWN)]
    more = len(unread) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _unread_names(row: Row, row_format: RowFormat) -> Iterator[str]:
    yield from _unread(row, _READ[row_format])
    for column in LISTS.get(row_format, ()):
        messages = from_cell(row.get(column))
        if isinstance(messages, list):
            for message in messages:
                if isinstance(message, dict):
                    yield from (f"{name} of {column}" for name in _unread(message, READ_KEYS))


def _unread(given: Mapping[str, object], read: set[str]) -> list[str]:
    if given.keys() <= read:  # nearly always, and much faster
        return []
    return [name for name, value in given.items() if name not in read and not is_empty(value)]
