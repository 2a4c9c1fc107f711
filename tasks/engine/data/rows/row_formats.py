"""The format of rows, by their columns, and rows as examples to learn from or to answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tasks.config.data import (
    ANSWERED,
    GENERATIVE,
    JUDGED,
    PREFERENCES,
    OnLostAnswer,
    RowFormat,
    Turns,
)
from tasks.config.likeness import nearest
from tasks.engine.data.rows.cells import parsed
from tasks.engine.data.rows.classified_rows import (
    labelled_example,
    tagged_example,
    tagged_question,
    text_example,
)
from tasks.engine.data.rows.column_proposals import proposed_columns
from tasks.engine.data.rows.conversation_rows import (
    are_messages,
    conversation_example,
    conversation_question,
    prompted_example,
    prompted_question,
)
from tasks.engine.data.rows.conversations import Example
from tasks.engine.data.rows.instruction_rows import (
    completion_example,
    completion_question,
    instruction_example,
    instruction_question,
)
from tasks.engine.data.rows.judged_rows import is_label, judged_messages, judged_text
from tasks.engine.data.rows.messages import is_turn
from tasks.engine.data.rows.preference_rows import (
    check_pair,
    empty_answer,
    empty_pair,
    has_messages,
    message_pair,
    message_pair_question,
    no_answer,
    text_pair,
    text_pair_question,
)
from tasks.engine.data.rows.reading_errors import BadRowError, refusing_row
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.trained_turns import trains_nothing, with_turns
from tasks.engine.data.rows.unread_columns import LISTS, PAIR, refusal
from tasks.engine.excerpts import excerpt, listed
from tasks.errors import UserError


@dataclass(frozen=True)
class _Reader:
    """How the rows of a format are read."""

    columns: tuple[str, ...]
    """The columns that a row must have; a question needs the first only."""
    example: Callable[[int, Row], Example]
    question: Callable[[int, Row], Example]
    others: tuple[str, ...] = ()
    """Other names of the first column."""

    def fits(self, row: Row) -> bool:
        """Return whether a row has the columns."""
        first, *more = self.columns
        return any(name in row for name in (first, *self.others)) and all(
            name in row for name in more
        )

    def asks(self, row: Row) -> bool:
        """Return whether a row has what is asked."""
        return any(row.get(name) is not None for name in (self.columns[0], *self.others))


_PROMPT = ("prompt", "completion")
_OF_MESSAGES = {
    RowFormat.CONVERSATIONAL: RowFormat.PROMPT_COMPLETION,
    RowFormat.CONVERSATIONAL_PREFERENCE: RowFormat.PREFERENCE,
    RowFormat.CONVERSATIONAL_UNPAIRED: RowFormat.UNPAIRED,
}
"""Formats of messages, and the ones of texts in the same columns."""
_READERS = {
    RowFormat.MESSAGES: _Reader(
        LISTS[RowFormat.MESSAGES],
        partial(conversation_example, names=LISTS[RowFormat.MESSAGES]),
        partial(conversation_question, names=LISTS[RowFormat.MESSAGES]),
    ),
    RowFormat.SHAREGPT: _Reader(
        LISTS[RowFormat.SHAREGPT][:1],
        partial(conversation_example, names=LISTS[RowFormat.SHAREGPT]),
        partial(conversation_question, names=LISTS[RowFormat.SHAREGPT]),
        others=LISTS[RowFormat.SHAREGPT][1:],
    ),
    RowFormat.PROMPT_COMPLETION: _Reader(_PROMPT, completion_example, completion_question),
    RowFormat.CONVERSATIONAL: _Reader(_PROMPT, prompted_example, prompted_question),
    RowFormat.INSTRUCTION: _Reader(
        ("instruction", "output"), instruction_example, instruction_question
    ),
    RowFormat.PREFERENCE: _Reader(PAIR, text_pair, text_pair_question),
    RowFormat.CONVERSATIONAL_PREFERENCE: _Reader(PAIR, message_pair, message_pair_question),
    RowFormat.UNPAIRED: _Reader((*_PROMPT, "label"), judged_text, completion_question),
    RowFormat.CONVERSATIONAL_UNPAIRED: _Reader(
        (*_PROMPT, "label"), judged_messages, prompted_question
    ),
    RowFormat.TEXT: _Reader(("text",), text_example, text_example),
    RowFormat.LABELLED: _Reader(("text", "label"), labelled_example, text_example),
    RowFormat.TAGGED: _Reader(("tokens", "tags"), tagged_example, tagged_question),
}


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
            f"data.format {wanted} cannot be used with this {_decides(wanted, learnable)}; "
            f"possible: {', '.join(learnable)}"
        )
    # Which of two it is depends on the values, as both have the same columns.
    given = [one for one in learnable if one not in _OF_MESSAGES]
    possible = given if wanted is RowFormat.AUTO else [_by_columns(wanted)]
    fitting = [one for one in possible if _READERS[one].fits(row)]
    if len(fitting) > 1:
        # Many datasets have the rendered prompt as `text` beside the columns it is made of.
        fitting = [one for one in fitting if one is not RowFormat.TEXT]
        fitting = [one for one in fitting if one not in PREFERENCES] or fitting
        if RowFormat.UNPAIRED in fitting:
            is_judged = is_label(row["label"])
            fitting = [one for one in fitting if (one is RowFormat.UNPAIRED) == is_judged]
    if len(fitting) == 1:
        return _by_values(fitting[0], row) if wanted not in _OF_MESSAGES else wanted
    columns = f"{source} has the columns {listed(row) or '(none)'}"
    if fitting:
        raise UserError(f"{columns}, which fit {' and '.join(fitting)}; set data.format to one")
    choices = "; ".join(f"{one}: {', '.join(_READERS[one].columns)}" for one in possible)
    raise UserError(f"{columns}; possible: {choices}; {_advice(row, possible)}")


def _decides(wanted: RowFormat, learnable: Sequence[RowFormat]) -> str:
    """Return the setting by which a format can't be learned."""
    is_other = any((wanted in kind) != (learnable[0] in kind) for kind in (PREFERENCES, JUDGED))
    return "training.objective" if is_other else "base_model.task"


def _by_columns(row_format: RowFormat) -> RowFormat:
    return _OF_MESSAGES.get(row_format, row_format)


def _by_values(row_format: RowFormat, row: Row) -> RowFormat:
    """Return the format, depending on whether the prompt is text or a list of messages."""
    if row_format is RowFormat.PREFERENCE:
        return RowFormat.CONVERSATIONAL_PREFERENCE if has_messages(row) else row_format
    if row_format not in (RowFormat.PROMPT_COMPLETION, RowFormat.UNPAIRED):
        return row_format
    given = [row[name] for name in _PROMPT if name in row]
    is_prompted = any(isinstance(one, list) for one in given) or all(map(are_messages, given))
    of_messages = next(name for name, texts in _OF_MESSAGES.items() if texts is row_format)
    return of_messages if is_prompted else row_format


def _advice(row: Row, possible: Sequence[RowFormat]) -> str:
    """Return how to change the columns of a row so that they fit a format."""
    if advice := _advice_on_objective(row, possible):
        return advice
    if set(possible) & set(ANSWERED) and (advice := _advice_on_names(row)):
        return advice
    required = [_READERS[one].columns for one in possible]
    for column in (name for columns in required for name in columns):
        near = nearest(column, [str(given) for given in row])
        if near and near.strip() == column and near != column:
            return f"remove the spaces around {column} in the column's name"
        if near and near != column:
            return f"rename {excerpt(near)} to {column}?"
    for row_format, columns in zip(possible, required, strict=True):
        lacking = [column for column in columns if column not in row]
        if len(lacking) < len(columns):
            return f"for {row_format}, {', '.join(lacking)} is missing"
    return "rename the columns to one of these, or name them in columns"


def _advice_on_objective(row: Row, possible: Sequence[RowFormat]) -> str | None:
    """Return what to do where pairs are given and answers learned, or other such combinations."""
    is_pair = any(str(column).startswith(PAIR) for column in row)
    if is_pair and not set(possible) & set(PREFERENCES):
        return (
            "to learn which of two answers is preferred (chosen, rejected), set "
            "training.objective: dpo; to imitate the chosen answers, write them as completion "
            "beside prompt, or as the last of the messages"
        )
    is_judged = {"completion", "label"} <= set(row)
    if not is_pair and set(possible) <= set(PREFERENCES):
        other = "kto to learn from judged answers" if is_judged else "sft to learn from one answer"
        return (
            "training.objective is one that learns from pairs (dpo, orpo, simpo): name their "
            f"columns in data.columns, or set objective: {other} a row"
        )
    if not is_judged and set(possible) <= set(JUDGED):
        return (
            "training.objective is kto, which learns from answers that are judged: add a column "
            "label with true or false, or name it in data.columns; or set objective: sft"
        )
    return None


def _advice_on_names(row: Row) -> str | None:
    """Return how to name a column that contains a conversation, or columns like a prompt."""
    for column, value in row.items():
        if _is_conversation(value):
            name = excerpt(column)
            return f"rename {name} to messages, or set columns: {{messages: {name}}}"
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in proposed_columns(row).items())
    return f"set columns: {{{pairs}}}?" if pairs else None


def _is_conversation(value: object) -> bool:
    found = parsed(value, "the column") if are_messages(value) else []
    return isinstance(found, list) and is_turn(next(iter(found), None))


@refusing_row()
def read_example(
    number: int,
    row: Row,
    row_format: RowFormat,
    turns: Turns = Turns.ALL,
    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR,
) -> Example:
    """Read a row to learn from.

    Args:
        number: of the row, from 1.
        row: its columns.
        row_format: which of them are read, and how.
        turns: which answers are trained on.
        on_lost_answer: whether a row may have none; it is dropped later.

    Raises:
        BadRowError: a column is missing or malformed, or another column, which is not read,
            changes what the row means, or no answer is trained on.
    """
    if reason := refusal(row, row_format):
        raise BadRowError(reason)
    is_strict = on_lost_answer is OnLostAnswer.ERROR
    if row_format in PREFERENCES and (name := empty_answer(row)):
        if is_strict:
            raise no_answer(name)
        return empty_pair(number, row)
    example = _READERS[row_format].example(number, row)
    if row_format in PREFERENCES and is_strict:
        check_pair(example)
    if row_format not in (*ANSWERED, *PREFERENCES, *JUDGED):
        return example
    messages = with_turns(example.messages, row, turns)
    rejected = with_turns(example.rejected, row, turns)
    if is_strict and (trains_nothing(messages) or (rejected and trains_nothing(rejected))):
        raise BadRowError(
            "no answer is trained on, as their weights are 0; remove the row, or set "
            "data.on_lost_answer to drop"
        )
    if messages is example.messages:
        return example
    return replace(example, messages=messages, rejected=rejected)


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
    row_format = next((one for one, reader in _READERS.items() if reader.asks(row)), None)
    if row_format is None:
        columns = listed(row) or "none"
        firsts = (one.columns[0] for name, one in _READERS.items() if name not in PREFERENCES)
        possible = ", ".join(dict.fromkeys(firsts))
        advice = _advice_on_names(row)
        hint = f"; {advice}" if advice else ""
        raise BadRowError(f"a row needs one of {possible}; this one's columns: {columns}{hint}")
    if row_format is RowFormat.PREFERENCE:
        row_format = _by_values(row_format, row)
    if row_format is RowFormat.PROMPT_COMPLETION and are_messages(row["prompt"]):
        row_format = RowFormat.CONVERSATIONAL
    if reason := refusal(row, row_format, asks=True):
        raise BadRowError(reason)
    return row_format, _READERS[row_format].question(number, row)
