"""Examples to learn from: checked rows as chat messages, in a training and an evaluation split."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.config.data import DataSettings, RowFormat
from tasks.config.mistakes import nearest
from tasks.config.reading import is_hub_dataset
from tasks.engine.row_sources import Row, read_rows
from tasks.errors import UserError

ROLES = ("system", "user", "assistant")

_SHOWN_CHARACTERS = 80

_REQUIRED = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.INSTRUCTION: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
}


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A checked row: either messages, of which the last is the assistant's, or plain text."""

    row: int
    """Number of the row in its source, from 1."""
    messages: tuple[Message, ...]
    text: str | None = None

    @property
    def answer(self) -> str:
        """What the assistant says last; empty for plain text."""
        return self.messages[-1].content if self.messages else ""

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """All that precedes the answer."""
        return self.messages[:-1]


_Numbered = list[tuple[Row, Example]]


@dataclass(frozen=True)
class Split:
    """Examples with the content hash of the rows that they came from, in their order."""

    source: str
    sha256: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ExampleSets:
    """What is trained and what is evaluated on."""

    row_format: RowFormat
    train: Split
    eval: Split | None

    @property
    def num_eval_rows_in_train(self) -> int:
        """How many evaluation examples are trained on, too, and so prove nothing."""
        known = {(one.messages, one.text) for one in self.train.examples}
        held_out = self.eval.examples if self.eval else ()
        return sum((one.messages, one.text) in known for one in held_out)


def read_examples(settings: DataSettings, seed: int) -> ExampleSets:
    """Read, check and split the data; equal files, settings and seed give equal examples.

    Without `eval` and `eval_split`, `eval_fraction` of the rows (at least one of two or more) are
    held out. Every row is checked, also those that `max_train_rows` leaves out. Of an `eval` that
    has splits, `train` is read.

    Raises:
        UserError: A source cannot be read, its columns fit no format, or a row is malformed; the
            message names the row.

    """
    train_revision, eval_revision = _revisions(settings)
    rows = read_rows(settings.train, settings.train_split, train_revision)
    row_format = detect_row_format(rows[0], settings.train, settings.format)
    numbered = _checked(rows, row_format, settings.train)
    held_out: _Numbered = []
    if settings.eval or settings.eval_split:
        source, split = settings.eval or settings.train, settings.eval_split or "train"
        held_out = _checked(read_rows(source, split, eval_revision), row_format, source)
    elif settings.eval_fraction > 0 and len(numbered) > 1:
        num_held_out = max(1, round(settings.eval_fraction * len(numbered)))
        held_out, numbered = _drawn(numbered, min(num_held_out, len(numbered) - 1), seed)
    if settings.max_train_rows is not None:
        numbered, _ = _drawn(numbered, min(settings.max_train_rows, len(numbered)), seed)
    return ExampleSets(
        row_format=row_format,
        train=_split(settings.train, numbered),
        eval=_split(settings.eval or settings.train, held_out) if held_out else None,
    )


def content_sha256(rows: Sequence[Row]) -> str:
    """Hash rows in order as canonical JSON: sorted keys, UTF-8, one line a row."""
    digest = hashlib.sha256()
    for row in rows:
        # Only Parquet and datasets hold values that JSON lacks, such as dates.
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def detect_row_format(row: Row, source: str, wanted: RowFormat = RowFormat.AUTO) -> RowFormat:
    """Tell the format by a row's columns, and that they are those of the `wanted` one.

    Raises:
        UserError: No format fits, or more than one.

    """
    possible = list(_REQUIRED) if wanted is RowFormat.AUTO else [wanted]
    fitting = [one for one in possible if all(column in row for column in _REQUIRED[one])]
    if len(fitting) > 1:
        # Many datasets carry the finished prompt as `text` beside its parts.
        fitting = [one for one in fitting if one is not RowFormat.TEXT]
    if len(fitting) == 1:
        return fitting[0]
    columns = f"{source} has the columns {', '.join(map(str, row)) or '(none)'}"
    if fitting:
        raise UserError(f"{columns}, which fit {' and '.join(fitting)}; set data.format to one")
    choices = "; ".join(f"{one}: {', '.join(_REQUIRED[one])}" for one in possible)
    raise UserError(f"{columns}; possible are {choices}{_nearest_column(row, possible)}")


def _nearest_column(row: Row, possible: Sequence[RowFormat]) -> str:
    for row_format in possible:
        for column in _REQUIRED[row_format]:
            near = nearest(column, [str(given) for given in row])
            if near and near != column:
                return f"; rename {near} to {column}?"
    for row_format in possible:
        lacking = [column for column in _REQUIRED[row_format] if column not in row]
        if len(lacking) < len(_REQUIRED[row_format]):
            return f"; for {row_format}, {', '.join(lacking)} is missing"
    return "; rename the columns to one of these"


def _revisions(settings: DataSettings) -> tuple[str | None, str | None]:
    """Tell which source the one `revision` is of: train unless only eval is on the Hub."""
    revision, other = settings.revision, settings.eval
    if revision is None or other is None or other == settings.train:
        return revision, revision
    if not is_hub_dataset(other):
        return revision, None
    if not is_hub_dataset(settings.train):
        return None, revision
    raise UserError(
        f"data.revision {revision!r} could be of {settings.train} or of {other}; remove it, or "
        "take the held-out rows from the same dataset by data.eval_split"
    )


def _drawn(items: _Numbered, count: int, seed: int) -> tuple[_Numbered, _Numbered]:
    """Draw by the seed; both the drawn and the others keep their order."""
    drawn = set(random.Random(seed).sample(range(len(items)), count))  # noqa: S311  # no secret
    return (
        [item for index, item in enumerate(items) if index in drawn],
        [item for index, item in enumerate(items) if index not in drawn],
    )


def _split(source: str, numbered: _Numbered) -> Split:
    return Split(
        source=source,
        sha256=content_sha256([row for row, _ in numbered]),
        examples=tuple(example for _, example in numbered),
    )


def _checked(rows: list[Row], row_format: RowFormat, source: str) -> _Numbered:
    checked = []
    for number, row in enumerate(rows, start=1):
        try:
            checked.append((row, _READERS[row_format](number, row)))
        except _BadRowError as error:
            raise UserError(f"{source}, row {number}: {error}") from error
    return checked


class _BadRowError(ValueError):
    """Says what is wrong with a row, but not yet which."""


def _messages_example(number: int, row: Row) -> Example:
    given = _column(row, "messages")
    if not isinstance(given, list) or not given:
        raise _BadRowError(
            f"messages is {_short(given)}; it must be a list of objects with role and content"
        )
    messages = tuple(_message(one, f"message {index}") for index, one in enumerate(given, start=1))
    if messages[-1].role != "assistant":
        raise _BadRowError(
            f"the last message is the {messages[-1].role}'s; it must be the assistant's, which is "
            "what is learnt"
        )
    if len(messages) == 1:
        raise _BadRowError("the assistant's message is the only one; put the user's before it")
    return Example(number, messages)


def _message(given: object, name: str) -> Message:
    if not isinstance(given, dict) or not {"role", "content"} <= set(given):
        raise _BadRowError(f"{name} is {_short(given)}; it must be an object with role and content")
    role, content = given["role"], given["content"]
    if role not in ROLES:
        raise _BadRowError(f"{name} has the role {_short(role)}; possible: {', '.join(ROLES)}")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    # Many datasets have empty system messages; nothing can be learnt from an empty answer.
    may_be_blank = role != "assistant"
    return Message(role, _text(content, f"the content of {name}", may_be_blank=may_be_blank))


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _prompt_example(number: int, row: Row) -> Example:
    prompt = _text(_column(row, "prompt"), "prompt")
    completion = _text(_column(row, "completion"), "completion")
    return Example(number, _turns(row, prompt, completion))


def _instruction_example(number: int, row: Row) -> Example:
    prompt = _text(_column(row, "instruction"), "instruction")
    if extra := _optional(row, "input"):
        prompt = f"{prompt}\n\n{extra}"
    return Example(number, _turns(row, prompt, _text(_column(row, "output"), "output")))


def _text_example(number: int, row: Row) -> Example:
    return Example(number, (), _text(_column(row, "text"), "text"))


_READERS: dict[RowFormat, Callable[[int, Row], Example]] = {
    RowFormat.MESSAGES: _messages_example,
    RowFormat.PROMPT_COMPLETION: _prompt_example,
    RowFormat.INSTRUCTION: _instruction_example,
    RowFormat.TEXT: _text_example,
}


def _turns(row: Row, prompt: str, answer: str) -> tuple[Message, ...]:
    system = _optional(row, "system")
    opening = (Message("system", system),) if system else ()
    return (*opening, Message("user", prompt), Message("assistant", answer))


def _column(row: Row, name: str) -> object:
    if name not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise _BadRowError(f"the column {name} is missing; the row's columns: {columns}")
    return row[name]


def _optional(row: Row, name: str) -> str:
    """Read a column that may be absent, null or blank."""
    given = row.get(name)
    text = "" if given is None else _text(given, name, may_be_blank=True)
    return text if text.strip() else ""


def _text(given: object, name: str, *, may_be_blank: bool = False) -> str:
    if not isinstance(given, str):
        raise _BadRowError(f"{name} is {_short(given)}; it must be text")
    if not may_be_blank and not given.strip():
        raise _BadRowError(f"{name} is empty; it must have some text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise _BadRowError(f"{name} has half of a surrogate pair, which is no character") from error
    return given


def _short(given: object) -> str:
    text = json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
