"""Rows of a prompt with a chosen and a rejected answer.

The prompt has a column of its own, or is what the two conversations, or texts, begin with.
"""

from collections.abc import Sequence

from tasks.engine.data.rows.cells import column, is_blank, is_empty, one_of, parsed, text
from tasks.engine.data.rows.conversation_rows import (
    are_messages,
    as_context,
    check_end,
    opening_of,
    question_of,
    read_messages,
    with_system,
)
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.messages import is_turn, role_of
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.tools import read_tools
from tasks.engine.data.rows.unread_columns import PAIR, PROMPTS

_DROP = "remove the row, or set data.on_lost_answer to drop"


def has_messages(row: Row) -> bool:
    """Return whether a row's prompt or answers are messages rather than texts."""
    given = [row[name] for name in (*PROMPTS, *PAIR) if name in row]
    return any(isinstance(one, list | dict) or are_messages(one) for one in given)


def text_pair(number: int, row: Row) -> Example:
    """Read a row of texts."""
    prompt, *answers = _texts(row)
    asked = (*opening_of(row), Message("user", prompt))
    chosen, rejected = ((*asked, Message("assistant", one)) for one in answers)
    return Example(number, chosen, tools=read_tools(row), rejected=rejected)


def text_pair_question(number: int, row: Row) -> Example:
    """Read the prompt of a row of texts."""
    asked = (*opening_of(row), Message("user", _texts(row)[0]), Message("assistant", ""))
    return Example(number, asked, tools=read_tools(row))


def message_pair(number: int, row: Row) -> Example:
    """Read a row of messages."""
    chosen, rejected = (with_system(row, one) for one in _conversations(row))
    return Example(number, chosen, tools=read_tools(row), rejected=rejected)


def message_pair_question(number: int, row: Row) -> Example:
    """Read the prompt of a row of messages."""
    chosen, rejected = _conversations(row)
    return question_of(number, row, chosen[: _num_common(chosen, rejected)])


def check_pair(example: Example) -> None:
    """Check that the answers of a pair differ.

    Raises:
        BadRowError: they are the same.
    """
    if example.messages == example.rejected:
        raise BadRowError(f"chosen and rejected are the same, so neither can be preferred; {_DROP}")


def empty_answer(row: Row) -> str | None:
    """Return the column of a pair without an answer in it; None if both have one."""
    is_absent = is_empty if has_messages(row) else is_blank
    given = ((name, row.get(name)) for name in PAIR)
    return next((name for name, one in given if is_absent(one) or _says_nothing(one)), None)


def empty_pair(number: int, row: Row) -> Example:
    """Return an example for a pair without an answer, of which nothing is trained on."""
    asked = Message("user", str(row.get("prompt", "")))
    return Example(number, (asked, Message("assistant", "", is_trained=False)))


def no_answer(name: str) -> BadRowError:
    """Return the error for a pair without an answer in this column."""
    return BadRowError(f"{name} is empty, so there is nothing to compare; {_DROP}")


def _says_nothing(given: object) -> bool:
    """Return whether the last of an answer's messages is the assistant's, and empty."""
    found = parsed(given, "the answer") if are_messages(given) else given
    last = found[-1] if isinstance(found, list) else found
    if not isinstance(last, dict) or not is_turn(last) or role_of(last) != "assistant":
        return False
    content = last.get("content", last.get("value"))
    calls = (last.get("tool_calls"), last.get("function_call"))
    return is_blank(content) and all(map(is_empty, calls))


def _texts(row: Row) -> tuple[str, str, str]:
    """Return the prompt and both answers."""
    chosen, rejected = (text(column(row, name), name) for name in PAIR)
    if not is_blank(row.get("prompt")):
        return text(row["prompt"], "prompt"), chosen, rejected
    common = _common_text(chosen, rejected)
    if not common.strip():
        raise BadRowError(
            "there is no prompt: the row has no column prompt, and chosen and rejected do not "
            "begin with the same words; add the prompt"
        )
    return common, chosen[len(common) :], rejected[len(common) :]


def _common_text(first: str, second: str) -> str:
    """Return the words that both texts begin with, without the space before the next one.

    Neither text is all prompt: of equal texts, the last word is the answer.
    """
    pairs = zip(first, second, strict=False)
    end = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    while end and not first[end - 1].isspace():
        end -= 1
    return first[:end].removesuffix(" ")


def _conversations(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return both conversations, with the prompt's answers as context."""
    prompt = _prompt(row)
    chosen, rejected = (_conversation(row, name, prompt) for name in PAIR)
    size = len(prompt) or _num_common(chosen, rejected)
    for name, one in zip(PAIR, (chosen, rejected), strict=True):
        if not size or len(one) == size or one[size].role != "assistant":
            raise BadRowError(
                f"{name} does not continue the prompt with an answer; the prompt is the column "
                "prompt, or else the messages that chosen and rejected begin with, and the "
                "assistant's message follows it in both"
            )
        check_end(one)
    context = as_context(chosen[:size])
    return (*context, *chosen[size:]), (*context, *rejected[size:])


def _prompt(row: Row) -> tuple[Message, ...]:
    name = one_of(row, PROMPTS)
    if not name:
        return ()
    return read_messages(_turns(row[name], "user"), name, asks=True)


def _conversation(row: Row, name: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation of a column, which may repeat the prompt before the answer."""
    given = _turns(column(row, name), "assistant")
    is_whole = bool(given) and role_of(given[0]) in {"system", "user"}
    if not is_whole:
        return read_messages(given, name, prompt)
    messages = read_messages(given, name)
    if messages[: len(prompt)] != prompt:
        raise BadRowError(
            f"{name} is a conversation that does not begin with the prompt; begin it so, or with "
            "the assistant's message"
        )
    return (*prompt, *messages[len(prompt) :])


def _turns(given: object, role: str) -> list[object]:
    """Return a list of messages; a text, or a single message, is a list of one."""
    if isinstance(given, str) and not are_messages(given):
        return [{"role": role, "content": given}]
    found = parsed(given, "the messages")
    return found if isinstance(found, list) else [found]


def _num_common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Return the number of messages that both begin with; of equal ones, all but the last."""
    pairs = enumerate(zip(first, second, strict=False))
    end = next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
    return end - 1 if end == len(first) == len(second) else end
