"""Rows that hold conversations as lists of messages: one list, or a prompt's and a completion's."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.engine.data.rows.cells import column, one_of, optional, parsed
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.messages import is_calls, is_turn, read_message, role_of
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.tools import read_tools
from tasks.engine.data.rows.unread_columns import message_refusal
from tasks.engine.excerpts import listed, shown

_WRITTEN_CALLS = ("<tool_call>", "<function", "[TOOL_CALLS]", "<|python_tag|>", "Action:")
"""What the text of an answer may contain that calls a tool in words of the model's own."""


def are_messages(given: object) -> bool:
    """Return whether a column holds messages rather than text: a list, or one as JSON."""
    if not isinstance(given, str):
        return isinstance(given, list)
    if not given.lstrip().startswith("["):
        return False
    try:
        found = parsed(given, "the text")
    except BadRowError:
        return False
    return isinstance(found, list) and bool(found) and all(map(is_turn, found))


def conversation_example(number: int, row: Row, names: tuple[str, ...]) -> Example:
    """Read a row that is one list of messages, in a column of one of these names."""
    name = _list_of(row, names)
    messages = with_system(row, read_messages(column(row, name), name))
    check_end(messages)
    return Example(number, messages, tools=read_tools(row))


def prompted_example(number: int, row: Row) -> Example:
    """Read a row whose prompt and completion are lists of messages; the completion is learned."""
    context = as_context(read_messages(_messages(row, "prompt"), "prompt"))
    messages = read_messages(_messages(row, "completion"), "completion", context)
    check_end(messages)
    return Example(number, with_system(row, messages), tools=read_tools(row))


def as_context(prompt: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages of a prompt, none of whose answers is trained on."""
    return tuple(
        replace(one, is_trained=False, is_context=one.is_trained)
        if one.role == "assistant"
        else one
        for one in prompt
    )


def conversation_question(number: int, row: Row, names: tuple[str, ...]) -> Example:
    """Read a row that is one list of messages, except an answer at its end."""
    name = _list_of(row, names)
    given = parsed(column(row, name), name)
    if isinstance(given, list) and given and role_of(given[-1]) == "assistant":
        given = _without_answer(given)
        if not given:
            raise BadRowError(
                "the assistant's message is the only one, so there is no question; put the user's "
                "before it"
            )
    return question_of(number, row, read_messages(given, name, asks=True))


def _without_answer(given: list[object]) -> list[object]:
    """Return messages without the last, and without the turns of calls that belong to it."""
    end = len(given)
    while end and is_calls(given[end - 1]):
        end -= 1
    return given[: end - 1] if end and role_of(given[end - 1]) == "assistant" else given[:end]


def prompted_question(number: int, row: Row) -> Example:
    """Read a row whose prompt is a list of messages."""
    return question_of(number, row, read_messages(_messages(row, "prompt"), "prompt", asks=True))


def question_of(number: int, row: Row, asked: tuple[Message, ...]) -> Example:
    """Return the example of a question, whose answer is empty."""
    last = asked[-1]
    if last.role != "tool" and not last.tool_calls and not last.content.strip():
        raise BadRowError("the last message is empty, so there is no question")
    messages = (*with_system(row, asked), Message("assistant", ""))
    return Example(number, messages, tools=read_tools(row))


def _list_of(row: Row, names: tuple[str, ...]) -> str:
    return one_of(row, names) or next((name for name in names if name in row), names[0])


def _messages(row: Row, name: str) -> object:
    given = parsed(column(row, name), name)
    if isinstance(given, str):
        raise BadRowError(
            f"{name} is {shown(given)}; it must be a list of messages: prompt and completion are "
            "both texts or both lists, and the same in all rows"
        )
    return given


def read_messages(
    given: object, name: str, before: tuple[Message, ...] = (), *, asks: bool = False
) -> tuple[Message, ...]:
    """Read messages that follow those before; return all of them."""
    found, given = list(before), parsed(given, name)
    if not isinstance(given, list) or not given:
        raise BadRowError(
            f"{name} is {shown(given)}; it must be a list of objects with role and content, or "
            "with from and value"
        )
    for index, one in enumerate(given, 1):
        where = f"message {index}" if name == "messages" else f"message {index} of {name}"
        if isinstance(one, dict) and (reason := message_refusal(one)):
            raise BadRowError(f"{where} {reason}")
        message = read_message(one, where, asks=asks)
        _check_place(message, found, where)
        if is_calls(one) and found and _continues(message, found[-1]):
            calls = (*found[-1].tool_calls, *message.tool_calls)
            found[-1] = replace(found[-1], tool_calls=calls)
        else:
            found.append(message)
    return tuple(found)


def _continues(message: Message, before: Message) -> bool:
    return (
        before.role == "assistant"
        and before.is_trained == message.is_trained
        and not message.reasoning
    )


def _check_place(message: Message, before: Sequence[Message], name: str) -> None:
    """Check that a message may follow those before it."""
    if message.role == "system" and any(one.role != "system" for one in before):
        raise BadRowError(
            f"{name} is the system's; put it before all others, or make it the user's"
        )
    if message.role != "tool":
        return
    calling = next((one for one in reversed(before) if one.role != "tool"), None)
    if calling is None or calling.role != "assistant":
        raise BadRowError(
            f"{name} is the result of a tool, but follows no message of the assistant's; put the "
            "call of the tool before it"
        )
    if not calling.tool_calls and not any(mark in calling.content for mark in _WRITTEN_CALLS):
        raise BadRowError(
            f"{name} is the result of a tool, but the assistant's message before it calls none; "
            "add the call to that message as tool_calls"
        )
    ids = [call.id for one in before for call in one.tool_calls if call.id]
    if message.tool_call_id and message.tool_call_id not in ids:
        raise BadRowError(
            f"{name} has the tool_call_id {shown(message.tool_call_id)}, which no call before it "
            f"has; their ids: {listed(ids) or 'none'}"
        )


def check_end(messages: tuple[Message, ...]) -> None:
    """Check that a conversation ends with an answer to something."""
    if messages[-1].role != "assistant":
        raise BadRowError(
            f"the last message is the {messages[-1].role}'s; it must be the assistant's, as that "
            "is what the model learns"
        )
    if len(messages) == 1:
        raise BadRowError("the assistant's message is the only one; put the user's before it")


def with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return messages with the row's column `system` put first, unless they have it."""
    opening = opening_of(row)
    own = next((one for one in messages if one.role == "system" and one.content.strip()), None)
    if not opening or own in opening:
        return messages
    if own:
        raise BadRowError(
            f"the column system is {shown(opening[0].content)}, but the messages' own system "
            f"message is {shown(own.content)}; keep one of the two"
        )
    return (*opening, *(one for one in messages if one.role != "system"))


def opening_of(row: Row) -> tuple[Message, ...]:
    """Return the system message of a row that has a column `system`; empty without one."""
    system = optional(row, "system")
    return (Message("system", system),) if system else ()
