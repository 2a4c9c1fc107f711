"""Columns of rows, and keys of messages, that are not read.

One that changes what a row means is a reason to refuse the row: trained on without it, the row
would teach something else than its author wrote. All others are counted, to be named once.
Absent, null and empty ones say nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tasks.config.data import RowFormat
from tasks.engine.data.json_values import from_cell
from tasks.engine.data.row_sources import Row

_ANSWERED = (RowFormat.MESSAGES, RowFormat.PROMPT_COMPLETION, RowFormat.INSTRUCTION)
_GENERATIVE = (*_ANSWERED, RowFormat.TEXT)
_ALL = tuple(RowFormat)

_READ = {
    RowFormat.MESSAGES: {"messages", "system"},
    RowFormat.PROMPT_COMPLETION: {"prompt", "completion", "system"},
    RowFormat.INSTRUCTION: {"instruction", "input", "output", "system"},
    RowFormat.TEXT: {"text"},
    RowFormat.LABELLED: {"text", "label"},
    RowFormat.TAGGED: {"tokens", "tags"},
}
_READ_OF_MESSAGES = {"role", "content"}
_EMPTY_CELLS = {"", "[]", "{}", "null"}
"""What nothing looks like in a CSV cell."""


def _always(value: object) -> bool:  # noqa: ARG001 - one of several tests of a value
    return True


def _is_truth_value(value: object) -> bool:
    return str(value).strip().lower() in {"true", "false"}


def _is_false(value: object) -> bool:
    return str(value).strip().lower() == "false"


def _is_not_one(value: object) -> bool:
    try:
        return float(str(value)) != 1
    except ValueError:  # a text such as "3 kg" weighs something else
        return _is_false(value)


@dataclass(frozen=True)
class _Meaning:
    """Names that change what a row means, and what to do about them."""

    columns: tuple[str, ...]
    """Where they stand beside the columns that are read."""
    keys: tuple[str, ...]
    """Where they stand in a message."""
    formats: tuple[RowFormat, ...]
    advice: str
    is_asked: bool
    """Whether it is part of the question, and not of how it is to be answered only."""
    matters: Callable[[object], bool] = _always


_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_REASONING = ("reasoning_content", "thinking")
_MEANINGS = (
    _Meaning(
        columns=_TOOLS,
        keys=_TOOLS,
        formats=_ANSWERED,
        advice="tools and calls of them are not handed to the chat template; leave such rows out, "
        "or write both into the text of the messages as the template would",
        is_asked=True,
    ),
    _Meaning(
        columns=_REASONING,
        keys=(*_REASONING, "reasoning"),
        formats=_ANSWERED,
        advice="reasoning is not handed to the chat template; write it into the answer's text as "
        "the template would, or remove it to train on the answer alone",
        is_asked=True,
    ),
    _Meaning(
        columns=("chat_template_kwargs",),
        keys=(),
        formats=_ANSWERED,
        advice="nothing but the messages is handed to the chat template; remove it",
        is_asked=True,
    ),
    _Meaning(
        columns=("history",),
        keys=(),
        formats=_ANSWERED,
        advice="earlier turns are read from messages only; write the row as messages, a list of "
        "objects with role (system, user, assistant) and content",
        is_asked=True,
    ),
    _Meaning(
        columns=_MEDIA,
        keys=_MEDIA,
        formats=_ALL,
        advice="only text is read; leave such rows out, or remove it to train on the text alone",
        is_asked=True,
    ),
    _Meaning(
        columns=("chosen", "rejected"),
        keys=(),
        formats=_GENERATIVE,
        advice="preferences are not learnt; to imitate the chosen answers, write them as "
        "completion, or as the last of the messages, and remove chosen and rejected",
        is_asked=False,
    ),
    _Meaning(
        columns=("label", "kto_tag"),
        keys=(),
        formats=_GENERATIVE,
        advice="whether an answer is wanted is not learnt, so an unwanted one would be imitated; "
        "keep only the rows whose answer is wanted, without this column",
        is_asked=False,
        matters=_is_truth_value,
    ),
    _Meaning(
        columns=("weight", "loss_weight"),
        keys=("weight", "loss_weight"),
        formats=_ALL,
        advice="everything that is learnt counts alike, as with the weight 1; leave out what "
        "should not be learnt",
        is_asked=False,
        matters=_is_not_one,
    ),
    _Meaning(
        columns=(),
        keys=("train",),
        formats=_ANSWERED,
        advice="every answer is trained on; leave out what should not be learnt",
        is_asked=False,
        matters=_is_false,
    ),
)
_BY_COLUMN = {name: one for one in _MEANINGS for name in one.columns}
_BY_KEY = {name: one for one in _MEANINGS for name in one.keys}


def refusal(row: Row, row_format: RowFormat, *, asks: bool = False) -> str | None:
    """Return why a row can't be read without some column; None where it can.

    Args:
        row: the row.
        row_format: which of its columns are read.
        asks: whether the row is a question, so that only what is asked counts.
    """
    for name in _unread(row, _READ[row_format]):
        meaning = _BY_COLUMN.get(name)
        is_meant = meaning and row_format in meaning.formats and (meaning.is_asked or not asks)
        if meaning and is_meant and meaning.matters(row[name]):
            return f"there is a column {name}: {meaning.advice}"
    return None


def message_refusal(message: Mapping[str, object], *, asks: bool = False) -> str | None:
    """Return why a message can't be read without some key, as `refusal` does of a row."""
    for name in _unread(message, _READ_OF_MESSAGES):
        meaning = _BY_KEY.get(name)
        # Only the assistant's messages are learnt; that the others have no weight goes without
        # saying.
        is_learnt = message.get("role") == "assistant" and not asks
        if meaning and (meaning.is_asked or is_learnt) and meaning.matters(message[name]):
            return f"has the key {name}: {meaning.advice}"
    return None


def count_unread(rows: Iterable[Row], row_format: RowFormat) -> Counter[str]:
    """Count the rows in which something stands that is not read, by the column's or key's name."""
    found: Counter[str] = Counter()
    for row in rows:
        for name in dict.fromkeys(_unread_names(row, row_format)):
            found[name] += 1
    return found


def unread_text(unread: Mapping[str, int]) -> str:
    """Return the names and counts as one line."""
    return ", ".join(f"{name} ({count:,} rows)" for name, count in unread.items())


def _unread_names(row: Row, row_format: RowFormat) -> Iterator[str]:
    yield from _unread(row, _READ[row_format])
    messages = from_cell(row.get("messages"))
    if row_format is RowFormat.MESSAGES and isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                yield from (f"{name} of messages" for name in _unread(message, _READ_OF_MESSAGES))


def _unread(given: Mapping[str, object], read: set[str]) -> list[str]:
    if given.keys() <= read:  # as nearly always
        return []
    return [name for name, value in given.items() if name not in read and not _says_nothing(value)]


def _says_nothing(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() in _EMPTY_CELLS
    return value is None or (isinstance(value, list | dict) and not value)
