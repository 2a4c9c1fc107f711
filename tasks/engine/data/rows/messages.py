"""A message of a conversation: OpenAI's `role` and `content`, or ShareGPT's `from` and `value`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.engine.data.rows.cells import is_empty, one_of, text
from tasks.engine.data.rows.conversations import Message, ToolCall
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.tools import read_calls
from tasks.engine.data.rows.trained_turns import WEIGHT_KEYS, is_trained
from tasks.engine.excerpts import shown

_CALLS = "function_call"
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    # Turns that hold nothing but the assistant's calls.
    "function_call": _CALLS,
    "tool_call": _CALLS,
}


@dataclass(frozen=True)
class _Dialect:
    """What a kind of messages calls the speaker and the text."""

    role: str
    content: str
    roles: str
    """The usual names of the speakers, for messages."""


_OPENAI = _Dialect("role", "content", "system, user, assistant, tool")
_SHAREGPT = _Dialect("from", "value", "system, human, gpt, function_call, observation")

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names of what the assistant thought before its answer: as keys, and as columns."""

_ONLY_OF = {
    "tool_calls": "assistant",
    "function_call": "assistant",
    **dict.fromkeys(REASONING, "assistant"),
    "tool_call_id": "tool",
}
NO_SEPARATOR = "no_separator"
"""The key of a message that the next one directly continues where there is no chat template."""
READ_KEYS = {"role", "content", "from", "value", "name", NO_SEPARATOR, *_ONLY_OF, *WEIGHT_KEYS}
"""The keys of a message that are read."""

_PLAIN = {"role", "content"}

_PARTS = {
    "text": "text",
    "reasoning": "reasoning_content",
    "thinking": "reasoning_content",
    "tool_call": "tool_calls",
}
"""What the parts of a content are, by their types."""
_PART_TEXTS = ("text", "value", "thinking", "reasoning")
"""The keys that parts have their text in."""


def is_turn(given: object) -> bool:
    """Return whether a value looks like a message of either kind."""
    return isinstance(given, dict) and any(
        {one.role, one.content} <= given.keys() for one in (_OPENAI, _SHAREGPT)
    )


def role_of(given: object) -> str:
    """Return which of `ROLES` speaks in a message; empty if that is not known."""
    role = _ROLES.get(str(given.get(_dialect(given).role)), "") if isinstance(given, dict) else ""
    return "assistant" if role == _CALLS else role


def is_calls(given: object) -> bool:
    """Return whether a message is a turn of calls alone, which belong to the turn before."""
    return isinstance(given, dict) and _ROLES.get(str(given.get(_dialect(given).role))) == _CALLS


def read_message(given: object, name: str, *, asks: bool) -> Message:
    """Read a message.

    Args:
        given: the message.
        name: what it is, for messages to the user.
        asks: whether it is part of a question, so that it does not matter what is trained on.

    Raises:
        BadRowError: a key is missing or malformed, or belongs to another role.
    """
    dialect = _dialect(given)
    if not isinstance(given, dict) or dialect.role not in given:
        raise _incomplete(given, name, dialect)
    role = _role(given, name, dialect)
    if isinstance(given.get(dialect.content), list) and role != _CALLS:
        given = _unfolded(given, name, dialect)
    if given.keys() <= _PLAIN and role != _CALLS:  # nearly always, and much faster
        return Message(role, _content(given, name, dialect, role, ()))
    if role == _CALLS:
        role, content = "assistant", ""
        calls = read_calls(given.get(dialect.content), f"the {dialect.content} of {name}")
    else:
        calls = _calls(given, name)
        content = _content(given, name, dialect, role, calls)
    _check_owners(given, name, role)
    return Message(
        role,
        content,
        reasoning=_reasoning(given, name),
        tool_calls=calls,
        name=_text_of(given, "name", name),
        tool_call_id=_text_of(given, "tool_call_id", name),
        is_trained=asks or is_trained(given, name, role),
        no_separator=_no_separator(given, name),
    )


def _dialect(given: object) -> _Dialect:
    is_sharegpt = isinstance(given, dict) and "from" in given and "role" not in given
    return _SHAREGPT if is_sharegpt else _OPENAI


def _role(given: Mapping[str, object], name: str, dialect: _Dialect) -> str:
    role = given[dialect.role]
    if not isinstance(role, str) or role not in _ROLES:
        has = "has the role" if dialect is _OPENAI else "is from"
        raise BadRowError(f"{name} {has} {shown(role)}; possible: {dialect.roles}")
    return _ROLES[role]


def _check_owners(given: Mapping[str, object], name: str, role: str) -> None:
    for key, owner in _ONLY_OF.items():
        if role != owner and key in given and not is_empty(given[key]):
            raise BadRowError(
                f"{name} has the key {key}, but is the {role}'s; only the {owner}'s messages "
                "have it"
            )


def _calls(given: Mapping[str, object], name: str) -> tuple[ToolCall, ...]:
    key = one_of(given, ("tool_calls", "function_call"), name)
    return read_calls(given[key], f"the {key} of {name}") if key else ()


def _reasoning(given: Mapping[str, object], name: str) -> str:
    key = one_of(given, REASONING, name)
    return text(given[key], f"the {key} of {name}") if key else ""


def _text_of(given: Mapping[str, object], key: str, name: str) -> str:
    return "" if is_empty(given.get(key)) else text(given[key], f"the {key} of {name}")


def _no_separator(given: Mapping[str, object], name: str) -> bool:
    found = given.get(NO_SEPARATOR)
    if found is not None and not isinstance(found, bool):
        raise BadRowError(
            f"the {NO_SEPARATOR} of {name} is {shown(found)}; it must be true or false"
        )
    return bool(found)


def _content(
    given: Mapping[str, object],
    name: str,
    dialect: _Dialect,
    role: str,
    calls: tuple[ToolCall, ...],
) -> str:
    content = given.get(dialect.content)
    if content is None and calls:
        return ""
    if dialect.content not in given:
        raise _incomplete(given, name, dialect)
    where = f"the {dialect.content} of {name}"
    # Many datasets have empty system messages, but nothing can be learned from an empty answer.
    return text(content, where, may_be_blank=role != "assistant" or bool(calls))


def _unfolded(given: Mapping[str, object], name: str, dialect: _Dialect) -> Mapping[str, object]:
    """Return a message whose content is a list of parts as one with text, reasoning and calls."""
    parts, found = given[dialect.content], dict[str, list[Any]]()
    for part in parts if isinstance(parts, list) else []:
        kind = _PARTS.get(str(part.get("type"))) if isinstance(part, dict) else None
        values = [part[key] for key in _PART_TEXTS if key in part] if kind else []
        if not kind or not values or not (isinstance(values[0], str) or kind == "tool_calls"):
            raise BadRowError(
                f"the {dialect.content} of {name} is {shown(parts)}; it must be text, or a list of "
                "objects with type text and a text, as only text is supported"
            )
        found.setdefault(kind, []).append(values[0])
    message = {**given, dialect.content: "".join(found.pop("text", []))}
    for key, values in found.items():
        if not is_empty(given.get(key)):
            raise BadRowError(f"{name} has {key} beside its content and in it; keep one of the two")
        message[key] = values if key == "tool_calls" else "".join(values)
    return message


def _incomplete(given: object, name: str, dialect: _Dialect) -> BadRowError:
    return BadRowError(
        f"{name} is {shown(given)}; it must be an object with {dialect.role} and {dialect.content}"
    )
