"""Rows as examples, by their columns: a conversation with its answer, a text, or a question."""

from collections.abc import Callable, Sequence
from itertools import islice

from tasks.config.data import RowFormat
from tasks.config.likeness import nearest
from tasks.engine.data.conversations import Example, Message
from tasks.engine.data.excerpts import head, listed, shown
from tasks.engine.data.json_values import DuplicateKeyError, from_cell
from tasks.engine.data.reading_errors import BadRowError, refusing_row
from tasks.engine.data.row_sources import Row
from tasks.engine.data.unread_columns import message_refusal, refusal
from tasks.errors import UserError

_ROLES = ("system", "user", "assistant")
_MOST_COLUMNS = 100  # that a misspelled name is looked for in

_REQUIRED = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.INSTRUCTION: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
    RowFormat.LABELLED: ("text", "label"),
    RowFormat.TAGGED: ("tokens", "tags"),
}

GENERATIVE = (
    RowFormat.MESSAGES,
    RowFormat.PROMPT_COMPLETION,
    RowFormat.INSTRUCTION,
    RowFormat.TEXT,
)
"""Formats of rows that a model answers or continues by generating text."""

_ASKED = (*GENERATIVE, RowFormat.TAGGED)
"""Formats of questions. A text to classify has the columns of one to continue."""


def detect_row_format(
    row: Row,
    source: str,
    wanted: RowFormat = RowFormat.AUTO,
    learnable: Sequence[RowFormat] = GENERATIVE,
) -> RowFormat:
    """Return the format that a row's columns fit, or check that they fit the wanted one.

    Args:
        row: the first of the rows.
        source: where it is from, for messages.
        wanted: the format that the user set, or `auto`.
        learnable: the formats that the task can learn from.

    Raises:
        UserError: no format fits, or more than one does, or the wanted one is not learnable.

    """
    if wanted not in (RowFormat.AUTO, *learnable):
        raise UserError(
            f"data.format {wanted} cannot be used with this base_model.task; possible: "
            f"{', '.join(learnable)}"
        )
    possible = list(learnable) if wanted is RowFormat.AUTO else [wanted]
    fitting = [one for one in possible if all(column in row for column in _REQUIRED[one])]
    if len(fitting) > 1:
        # Many datasets have the rendered prompt as `text` beside the columns it is made of.
        fitting = [one for one in fitting if one is not RowFormat.TEXT]
    if len(fitting) == 1:
        return fitting[0]
    columns = f"{source} has the columns {listed(row) or '(none)'}"
    if fitting:
        raise UserError(f"{columns}, which fit {' and '.join(fitting)}; set data.format to one")
    choices = "; ".join(f"{one}: {', '.join(_REQUIRED[one])}" for one in possible)
    raise UserError(f"{columns}; possible: {choices}; {_advice(row, possible)}")


def _advice(row: Row, possible: Sequence[RowFormat]) -> str:
    """Return how to change the columns of a row so that they fit a format."""
    if any(str(column).startswith(("chosen", "rejected")) for column in row):
        return (
            "training on preferences (chosen, rejected) is not supported; to imitate the chosen "
            "answers, write them as completion beside prompt, or as the last of the messages"
        )
    if RowFormat.MESSAGES in possible and (advice := _advice_on_turns(row)):
        return advice
    for row_format in possible:
        for column in _REQUIRED[row_format]:
            near = nearest(column, [str(given) for given in islice(row, _MOST_COLUMNS)])
            if near and near.strip() == column and near != column:
                return f"remove the spaces around {column} in the column's name"
            if near and near != column:
                return f"rename {head(near)} to {column}?"
    for row_format in possible:
        lacking = [column for column in _REQUIRED[row_format] if column not in row]
        if len(lacking) < len(_REQUIRED[row_format]):
            return f"for {row_format}, {', '.join(lacking)} is missing"
    return "rename the columns to one of these"


def _advice_on_turns(row: Row) -> str | None:
    """Return how to turn a column that contains a conversation into `messages`."""
    for column, value in row.items():
        turns = _turns_in(value)
        if turns and {"role", "content"} <= set(turns[0]):
            return f"rename {head(column)} to messages"
        if turns and {"from", "value"} <= set(turns[0]):
            return (
                f"{head(column)} is a conversation in ShareGPT's format: write it as messages, a "
                "list of objects with role instead of from (human becomes user, gpt becomes "
                f"assistant; system stays) and content instead of value{_roleless(turns)}"
            )
    return None


def _turns_in(value: object) -> list[dict[object, object]]:
    try:
        given = from_cell(value)
    except DuplicateKeyError:
        return []
    are_turns = isinstance(given, list) and all(isinstance(one, dict) for one in given)
    return given if isinstance(given, list) and are_turns else []


def _roleless(turns: list[dict[object, object]]) -> str:
    """Describe the speakers of a ShareGPT conversation that no role corresponds to."""
    speakers = dict.fromkeys(_speaker(one.get("from")) for one in turns)
    others = [one for one in speakers if one not in {"human", "gpt", *_ROLES}]
    return f"; no role corresponds to {listed(others)}: remove such rows" if others else ""


def _speaker(given: object) -> str:
    return given if isinstance(given, str) else shown(given)


@refusing_row()
def read_example(number: int, row: Row, row_format: RowFormat) -> Example:
    """Read a row to learn from.

    Args:
        number: of the row, from 1.
        row: its columns.
        row_format: which of them are read, and how.

    Raises:
        BadRowError: a column is missing or malformed, or another column, which is not read,
            changes what the row means.
    """
    if reason := refusal(row, row_format):
        raise BadRowError(reason)
    return _READERS[row_format](number, row)


@refusing_row()
def read_question(number: int, row: Row) -> tuple[RowFormat, Example]:
    """Read a row to answer: the columns of any format, except the answer's.

    If the row has an answer, as held-out rows do, it is not read; the example's last message is an
    empty one of the assistant's instead.

    Args:
        number: of the row, from 1.
        row: its columns.

    Raises:
        BadRowError: the row has no format's columns, or no text in them, or another column, which
            is not read, changes what is asked.
    """
    row_format = next((one for one in _ASKED if row.get(_REQUIRED[one][0]) is not None), None)
    if row_format is None:
        columns = listed(row) or "none"
        possible = ", ".join(_REQUIRED[one][0] for one in _ASKED)
        advice = _advice_on_turns(row)
        hint = f"; {advice}" if advice else ""
        raise BadRowError(f"a row needs one of {possible}; this one's columns: {columns}{hint}")
    if reason := refusal(row, row_format, asks=True):
        raise BadRowError(reason)
    if row_format is RowFormat.TEXT:
        return row_format, _text_example(number, row)
    if row_format is RowFormat.TAGGED:
        words = _words(row)
        return row_format, Example(number, (), " ".join(words), words=words)
    if row_format is RowFormat.MESSAGES:
        given = _cell(row["messages"], "messages")
        if isinstance(given, list) and _is_answer(given[-1:]):
            given = given[:-1]
            if not given:
                raise BadRowError(
                    "the assistant's message is the only one, so there is no question; put the "
                    "user's before it"
                )
        asked = _messages(row, given, asks=True)
        if asked[-1].role != "tool" and not asked[-1].content.strip():
            raise BadRowError("the last message is empty, so there is no question")
        return row_format, Example(number, (*asked, Message("assistant", "")))
    prompt = _instruction(row) if row_format is RowFormat.INSTRUCTION else _prompt(row)
    return row_format, Example(number, _turns(row, prompt, ""))


def _is_answer(last: list[object]) -> bool:
    return any(isinstance(one, dict) and one.get("role") == "assistant" for one in last)


def _cell(given: object, column: str) -> object:
    try:
        return from_cell(given)
    except DuplicateKeyError as error:
        raise BadRowError(f"in {column}, {error}; keep one of the two") from error


def _messages(row: Row, given: object, *, asks: bool = False) -> tuple[Message, ...]:
    """Read the messages of a row, with a system message from the column `system` put first."""
    if not isinstance(given, list) or not given:
        raise BadRowError(
            f"messages is {shown(given)}; it must be a list of objects with role and content"
        )
    messages = tuple(
        _message(one, f"message {index}", asks=asks) for index, one in enumerate(given, start=1)
    )
    opening = _opening(row)
    own = next((one for one in messages if one.role == "system" and one.content.strip()), None)
    if not opening or own in opening:
        return messages
    if own:
        raise BadRowError(
            f"the column system is {shown(opening[0].content)}, but the system message in "
            f"messages is {shown(own.content)}; keep one of the two"
        )
    return (*opening, *(one for one in messages if one.role != "system"))


def _messages_example(number: int, row: Row) -> Example:
    messages = _messages(row, _cell(_column(row, "messages"), "messages"))
    if messages[-1].role != "assistant":
        raise BadRowError(
            f"the last message is the {messages[-1].role}'s; it must be the assistant's, as that "
            "is what the model learns"
        )
    if len(messages) == 1:
        raise BadRowError("the assistant's message is the only one; put the user's before it")
    return Example(number, messages)


def _message(given: object, name: str, *, asks: bool) -> Message:
    if not isinstance(given, dict) or not {"role", "content"} <= set(given):
        raise BadRowError(f"{name} is {shown(given)}; it must be an object with role and content")
    role, content = given["role"], given["content"]
    if role not in _ROLES:
        raise BadRowError(f"{name} has the role {shown(role)}; possible: {', '.join(_ROLES)}")
    if reason := message_refusal(given, asks=asks):
        raise BadRowError(f"{name} {reason}")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if isinstance(content, list):
        raise BadRowError(
            f"the content of {name} is {shown(content)}; it must be text, or a list of objects "
            "with type text and a text, as only text is supported"
        )
    # Many datasets have empty system messages, but nothing can be learned from an empty answer.
    may_be_blank = role != "assistant"
    return Message(role, _text(content, f"the content of {name}", may_be_blank=may_be_blank))


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _prompt_example(number: int, row: Row) -> Example:
    prompt, completion = _prompt(row), _text(_column(row, "completion"), "completion")
    return Example(number, _turns(row, prompt, completion))


def _prompt(row: Row) -> str:
    return _text(_column(row, "prompt"), "prompt")


def _instruction_example(number: int, row: Row) -> Example:
    instruction, output = _instruction(row), _text(_column(row, "output"), "output")
    return Example(number, _turns(row, instruction, output))


def _instruction(row: Row) -> str:
    instruction, extra = _text(_column(row, "instruction"), "instruction"), _optional(row, "input")
    return f"{instruction}\n\n{extra}" if extra else instruction


def _text_example(number: int, row: Row) -> Example:
    return Example(number, (), _text(_column(row, "text"), "text"))


def _labeled_example(number: int, row: Row) -> Example:
    text, label = _text(_column(row, "text"), "text"), _named(_column(row, "label"))
    return Example(number, (), text, _text(label, "label"))


def _tagged_example(number: int, row: Row) -> Example:
    words = _words(row)
    tags = tuple(_text(_named(tag), "a tag") for tag in _list(row, "tags"))
    if len(tags) != len(words):
        raise BadRowError(f"there are {len(words)} tokens and {len(tags)} tags; give one for each")
    return Example(number, (), " ".join(words), words=words, tags=tags)


def _words(row: Row) -> tuple[str, ...]:
    words = tuple(_text(word, "a token") for word in _list(row, "tokens"))
    for word in words:
        if any(map(str.isspace, word)):
            raise BadRowError(f"the token {shown(word)} contains whitespace; split it in several")
    return words


def _list(row: Row, name: str) -> list[object]:
    given = _cell(_column(row, name), name)
    given = given.tolist() if hasattr(given, "tolist") else given  # an array, from Parquet
    if not isinstance(given, list) or not given:
        raise BadRowError(f"{name} is {shown(given)}; it must be a list of texts")
    return given


def _named(label: object) -> object:
    """Return a class as text if it is an integer; anything else unchanged."""
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label


_READERS: dict[RowFormat, Callable[[int, Row], Example]] = {
    RowFormat.MESSAGES: _messages_example,
    RowFormat.PROMPT_COMPLETION: _prompt_example,
    RowFormat.INSTRUCTION: _instruction_example,
    RowFormat.TEXT: _text_example,
    RowFormat.LABELLED: _labeled_example,
    RowFormat.TAGGED: _tagged_example,
}


def _turns(row: Row, prompt: str, answer: str) -> tuple[Message, ...]:
    return (*_opening(row), Message("user", prompt), Message("assistant", answer))


def _opening(row: Row) -> tuple[Message, ...]:
    """Return the system message of a row that has a column `system`; empty without one."""
    system = _optional(row, "system")
    return (Message("system", system),) if system else ()


def _column(row: Row, name: str) -> object:
    if name not in row:
        columns = listed(row) or "none"
        raise BadRowError(f"the column {name} is missing; the row's columns: {columns}")
    return row[name]


def _optional(row: Row, name: str) -> str:
    """Read a column that may be absent, null or blank."""
    given = row.get(name)
    text = "" if given is None else _text(given, name, may_be_blank=True)
    return text if text.strip() else ""


def _text(given: object, name: str, *, may_be_blank: bool = False) -> str:
    if not isinstance(given, str):
        raise BadRowError(f"{name} is {shown(given)}; it must be text")
    if not may_be_blank and not given.strip():
        raise BadRowError(f"{name} is empty; it must contain text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{name} contains half of a surrogate pair, which is not a character; remove it"
        ) from error
    return given
