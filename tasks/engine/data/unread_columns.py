"""Columns of rows, and keys of messages, that are not read.

If one changes what the row means, the row is refused: without it, the row would teach something
that its author did not write. All others are counted, and reported once with their counts. Null
and empty values are treated as absent.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tasks.config.data import RowFormat
from tasks.engine.data.excerpts import head
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
_MOST_SHOWN = 50
_EMPTY_CELLS = {"", "[]", "{}", "null"}
"""CSV cells that are treated as absent."""


def _always(value: object) -> bool:  # noqa: ARG001 - one of several tests of a value
    return True


def _is_truth_value(value: object) -> bool:
    return str(value).strip().lower() in {"true", "false"}


def _is_false(value: object) -> bool:
    return str(value).strip().lower() in {"false", "no", "0", "0.0"}


def _is_true(value: object) -> bool:
    return str(value).strip().lower() in {"true", "yes", "1", "1.0"}


def _is_not_one(value: object) -> bool:
    try:
        return float(str(value)) != 1
    except ValueError:  # text such as "3 kg" is about another kind of weight
        return _is_false(value)


@dataclass(frozen=True)
class _Meaning:
    """Names that change what a row means, and what to do about them."""

    columns: tuple[str, ...]
    """The names of columns."""
    keys: tuple[str, ...]
    """The names of keys in a message."""
    formats: tuple[RowFormat, ...]
    """The formats of rows in which they do."""
    advice: str
    is_asked: bool
    """Whether it changes the question, and not only how it is to be answered."""
    matters: Callable[[object], bool] = _always
    """Whether a value changes what the row means."""


_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_EVERY_ANSWER = "every answer is trained on; leave out what should not be learnt"
_REASONING = ("reasoning_content", "thinking")
_MEANINGS = (
    _Meaning(
        columns=_TOOLS,
        keys=_TOOLS,
        formats=_ANSWERED,
        advice="tools and calls of them are not passed to the chat template; remove such rows, or "
        "write both into the text of the messages as the template would",
        is_asked=True,
    ),
    _Meaning(
        columns=_REASONING,
        keys=(*_REASONING, "reasoning", "reasoning_details"),
        formats=_ANSWERED,
        advice="reasoning is not passed to the chat template; write it into the answer's text as "
        "the template would, or remove it to train on the answer alone",
        is_asked=True,
    ),
    _Meaning(
        columns=("chat_template_kwargs",),
        keys=(),
        formats=_ANSWERED,
        advice="only the messages are passed to the chat template; remove the column",
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
        advice="only text is read; remove such rows, or remove it to train on the text alone",
        is_asked=True,
    ),
    _Meaning(
        columns=("chosen", "rejected"),
        keys=(),
        formats=_GENERATIVE,
        advice="training on preferences is not supported; to imitate the chosen answers, write "
        "them as completion, or as the last of the messages, and remove chosen and rejected",
        is_asked=False,
    ),
    _Meaning(
        columns=("label", "kto_tag"),
        keys=(),
        formats=_GENERATIVE,
        advice="whether an answer is good is not read, so bad ones would be imitated; keep only "
        "the rows with a good answer, without this column",
        is_asked=False,
        matters=_is_truth_value,
    ),
    _Meaning(
        columns=("weight", "loss_weight", "loss_scale"),
        keys=("weight", "loss_weight", "loss_scale"),
        formats=_ALL,
        advice="all answers have the weight 1; remove what should not be learned, and the weights",
        is_asked=False,
        matters=_is_not_one,
    ),
    _Meaning(
        columns=(),
        keys=("train", "training", "trainable", "loss", "loss_mask"),
        formats=_ANSWERED,
        advice=_EVERY_ANSWER,
        is_asked=False,
        matters=_is_false,
    ),
    _Meaning(
        columns=(),
        keys=("masked",),
        formats=_ANSWERED,
        advice=_EVERY_ANSWER,
        is_asked=False,
        matters=_is_true,
    ),
)
_BY_COLUMN = {name: one for one in _MEANINGS for name in one.columns}
_BY_KEY = {name: one for one in _MEANINGS for name in one.keys}


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
    return None


def message_refusal(message: Mapping[str, object], *, asks: bool = False) -> str | None:
    """Return why a message can't be used without some key; None if it can.

    Args:
        message: the message.
        asks: as in `refusal`.
    """
    for name in _unread(message, _READ_OF_MESSAGES):
        meaning = _BY_KEY.get(name)
        # Only the assistant's messages are learned, so a weight of 0 on others changes nothing.
        is_learned = message.get("role") == "assistant" and not asks
        if meaning and (meaning.is_asked or is_learned) and meaning.matters(message[name]):
            return f"has the key {name}: {meaning.advice}"
    return None


def count_unread(rows: Iterable[Row], row_format: RowFormat) -> Counter[str]:
    """Count the rows with a value that is not read, by the column's or key's name."""
    found: Counter[str] = Counter()
    for row in rows:
        for name in dict.fromkeys(_unread_names(row, row_format)):
            found[head(name)] += 1
    return found


def unread_text(unread: Mapping[str, int]) -> str:
    """Return the names and counts as a line of text."""
    shown = [f"{name} ({count:,} rows)" for name, count in islice(unread.items(), _MOST_SHOWN)]
    more = len(unread) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _unread_names(row: Row, row_format: RowFormat) -> Iterator[str]:
    yield from _unread(row, _READ[row_format])
    if row_format is not RowFormat.MESSAGES:
        return
    if isinstance(messages := from_cell(row.get("messages")), list):
        for message in messages:
            if isinstance(message, dict):
                yield from (f"{name} of messages" for name in _unread(message, _READ_OF_MESSAGES))


def _unread(given: Mapping[str, object], read: set[str]) -> list[str]:
    if given.keys() <= read:  # nearly always, and much faster
        return []
    return [name for name, value in given.items() if name not in read and not _is_empty(value)]


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() in _EMPTY_CELLS
    return value is None or (isinstance(value, list | dict) and not value)
