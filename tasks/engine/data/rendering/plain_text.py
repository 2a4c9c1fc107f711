"""Conversations as plain text: prompt and answer joined, without a chat template."""

from collections.abc import Sequence

from tasks.engine.data.rendering.end_tokens import EndTokens
from tasks.engine.data.rows import Example, Message
from tasks.errors import UserError


def check_plain(example: Example) -> None:
    """Check that an example has nothing that only a chat template can write.

    Raises:
        UserError: it has tools, calls of tools, their results, or reasoning.
    """
    found = {
        "tools": bool(example.tools),
        "tool calls": any(one.tool_calls for one in example.messages),
        "tool results": any(one.role == "tool" for one in example.messages),
        "reasoning": any(one.reasoning for one in example.messages),
    }
    if has := [name for name, is_there in found.items() if is_there]:
        raise UserError(
            f"row {example.row} has {', '.join(has)}, which only a chat template can render; use a "
            "base with a chat template, set data.chat_template, or remove them"
        )


def plain_prompt(messages: Sequence[Message], separator: str, ends: EndTokens) -> str:
    """Return the text before an answer."""
    return "".join(
        (ends.closed(one.content) if one.role == "assistant" else one.content)
        + _after(one, separator)
        for one in messages
    )


def plain_text(
    messages: Sequence[Message], trained: Sequence[int], separator: str, ends: EndTokens
) -> tuple[str, list[tuple[int, int]], int]:
    """Return the text to train on, the spans of its answers, and where the last content ends.

    Args:
        messages: the conversation.
        trained: the numbers of the answers to train on.
        separator: between the messages.
        ends: one of them follows each answer.
    """
    text, spans, content_end = "", [], 0
    for number, message in enumerate(messages):
        text += _after(messages[number - 1], separator) if number else ""
        start = len(text)
        text += message.content
        if message.role == "assistant":
            content_end = len(text)
            text = text[:start] + ends.closed(message.content)
            if number in trained:
                spans.append((start, len(text)))
    return text, spans, content_end


def _after(message: Message, separator: str) -> str:
    return "" if message.no_separator else separator
