"""Whether what a row has is in the text that a chat template makes of it."""

import json
from collections.abc import Iterator, Sequence

from tasks.engine.data.conversations import Message, ToolCall
from tasks.errors import UserError

_SHOWN_CHARACTERS = 80


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
            f"row {row}: the chat template changes the answer {_short(answer.content)!r}: it "
            f"writes {written[:_SHOWN_CHARACTERS]!r}; change the row, or set data.template to plain"
        )
    for call in answer.tool_calls:
        if (missing := _missing_from(call, squeezed)) is not None:
            raise UserError(
                f"row {row}: the chat template leaves {_short(missing)!r} out of the call of the "
                f"tool {call.name!r}: it writes {written[:_SHOWN_CHARACTERS]!r}; set "
                "data.chat_template to a template that writes tool calls, or change the row"
            )


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
    """Yield the keys and the values without parts of a JSON value: templates nest them freely."""
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


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
