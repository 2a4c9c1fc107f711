"""Check that what a row has is in the text that a chat template makes of it."""

import json
from collections.abc import Iterator, Sequence

from tasks.engine.data.rows import Message, ToolCall
from tasks.engine.excerpts import excerpt
from tasks.errors import UserError


def check_answer(row: int, answer: Message, written: str) -> None:
    """Check that a trained answer's content and its tool calls are in the text.

    Whitespace is ignored, as templates trim and add it.

    Args:
        row: the number of the answer's row.
        answer: with its content.
        written: what the template writes for it.

    Raises:
        UserError: some of it is not there.
    """
    squeezed = _squeezed(written)
    if _squeezed(answer.content) not in squeezed:
        raise UserError(
            f"row {row}: the chat template changes the answer {excerpt(repr(answer.content))}: it "
            f"writes {excerpt(repr(written))}; change the row, or set data.template to plain"
        )
    for call in answer.tool_calls:
        if (missing := _missing_from(call, squeezed)) is not None:
            raise UserError(
                f"row {row}: the chat template leaves {excerpt(repr(missing))} out of the call of "
                f"the tool {excerpt(repr(call.name))}: it writes {excerpt(repr(written))}; set "
                "data.chat_template to a template that writes tool calls, or change the row"
            )


def is_within(content: str, text: str) -> bool:
    """Return whether a content is a part of a text, whitespace aside."""
    return _squeezed(content) in _squeezed(text)


def has_reasoning(answer: Message, written: str) -> bool:
    """Return whether an answer's reasoning is in the text, if it has any."""
    return not answer.reasoning or _squeezed(answer.reasoning) in _squeezed(written)


def num_unwritten(messages: Sequence[Message], text: str) -> int:
    """Return the number of messages to the assistant that are not in the text."""
    squeezed = _squeezed(text)
    asked = (one.content for one in messages if one.role != "assistant")
    return sum(not _is_in(content, squeezed) for content in asked)


def has_tools(tools: str, text: str) -> bool:
    """Return whether the names of all tools are in the text.

    Args:
        tools: a JSON list; empty without tools.
        text: of the conversation.
    """
    given = json.loads(tools) if tools else []
    functions = [tool.get("function", tool) for tool in given if isinstance(tool, dict)]
    return all(str(one.get("name", "")) in text for one in functions if isinstance(one, dict))


def _missing_from(call: ToolCall, squeezed: str) -> str | None:
    """Return the first part of a tool call that is not in a squeezed text; None if all are."""
    parts = (call.name, *_leaves(json.loads(call.arguments)))
    return next((str(part) for part in parts if not _is_in(part, squeezed)), None)


def _leaves(value: object) -> Iterator[object]:
    """Yield the keys and the scalars of a JSON value: templates arrange these freely."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _is_in(value: object, squeezed: str) -> bool:
    """Return whether a value is in a squeezed text: as it is, as JSON, or as Python."""
    return any(_squeezed(form) in squeezed for form in _forms(value))


def _forms(value: object) -> Iterator[str]:
    yield str(value)
    if isinstance(value, str):
        yield json.dumps(value, ensure_ascii=False)[1:-1]
        yield json.dumps(value)[1:-1]
    else:
        yield json.dumps(value)


def _squeezed(text: str) -> str:
    return "".join(text.split())
