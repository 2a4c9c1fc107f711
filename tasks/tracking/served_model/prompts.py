"""Render a row as the text that its answer continues, as in training."""

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from .messages import conversation_of, tools_of
from .request_errors import refused, shown
from .rows import cell_of, text_of


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as text, and what its chat template writes around the content of an answer."""

    text: str
    is_chat: bool = False
    before: str = ""
    after: str = ""


def rendered(
    tokenizer: Any,  # noqa: ANN401
    row: dict[str, Any],
    chat: dict[str, Any] | None,
    ends: list[str],
) -> RenderedPrompt:
    """Render a row's prompt or messages as the text that the answer continues.

    Args:
        tokenizer: of the adapter.
        row: the prompt or messages, and any tools.
        chat: what the chat template is given; None without a chat template.
        ends: the texts of tokens that stop generation.

    Raises:
        RequestError: there is no question, or not one question.
    """
    messages, prompt = cell_of(row, "messages"), cell_of(row, "prompt")
    if (messages is None) == (prompt is None):
        given = "neither" if prompt is None else "both"
        raise refused(f"a row needs `prompt`, a text, or `messages`; this one has {given}")
    if prompt is not None:
        turns = [{"role": "user", "content": text_of(prompt, "prompt")}]
    elif chat is None:
        raise refused("the adapter was trained without a chat template; give `prompt`")
    else:
        turns = conversation_of(messages, ends)
    if chat is None:
        return RenderedPrompt(turns[0]["content"])
    return ask(tokenizer, turns, tools_of(row), chat)


def ask(
    tokenizer: Any,  # noqa: ANN401
    turns: list[dict[str, Any]],
    tools: list[Any] | None = None,
    chat: dict[str, Any] | None = None,
) -> RenderedPrompt:
    """Render a conversation by its chat template, and find what that writes around an answer.

    Args:
        tokenizer: with the chat template of the training.
        turns: the messages.
        tools: that the assistant may call.
        chat: `chat` in the adapter's manifest: the template's variables, and its form of messages.

    Raises:
        RequestError: the template refuses the conversation, or writes an answer more than once.
    """
    chat = chat or {}

    def render(*more: dict[str, Any], opened: bool = False) -> str:
        form = chat.get("message_form", {})
        return str(
            tokenizer.apply_chat_template(
                [_in_form(turn, form) for turn in (*turns, *more)],
                tools=tools,
                tokenize=False,
                add_generation_prompt=opened,
                **chat.get("chat_template_kwargs", {}),
            )
        )

    if chat.get("system_in_user"):
        turns = _system_in_user(turns)
    try:
        text = render(opened=True)
    except Exception as error:  # a template is a program: it may raise anything
        raise refused(f"the chat template refuses the messages: {error!s:.200}") from error
    mark = "\ue000answer\ue001"  # private-use characters, which no template handles
    try:
        marked, asked = render({"role": "assistant", "content": mark}), render()
    except Exception:  # noqa: BLE001
        marked = asked = ""
    head, found, after = marked.rpartition(mark)
    if not found:
        return RenderedPrompt(text, is_chat=True)
    if mark in head:
        raise refused("the chat template writes an answer more than once; it can't be read")
    before = head.removeprefix(text) if head.startswith(text) else _reopened(text, head, asked)
    return RenderedPrompt(text, is_chat=True, before=before, after=after)


def _reopened(opened: str, head: str, asked: str) -> str:
    """Return what precedes an answer's content where it is opened otherwise than it is asked for.

    Args:
        opened: the messages, and the generation prompt.
        head: the messages, and what precedes the content of an existing answer.
        asked: the messages alone.
    """
    if not opened.startswith(asked):
        return ""
    if not head.startswith(asked):  # an answer changes the messages before it, as with gpt-oss
        prompt = opened[len(asked) :]
        place = head.rfind(prompt) if prompt.strip() else -1
        return head[place + len(prompt) :] if place >= 0 else ""
    piece = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|.", re.DOTALL)
    pieces = (piece.findall(text[len(asked) :]) for text in (opened, head))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*pieces, strict=False))
    start = len(asked) + sum(len(one) for one, _ in same)
    return "" if opened[start:].strip() and head[start:].strip() else head[start:]


def _system_in_user(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put each system message at the beginning of the user's next message, as in training."""
    put, waiting = [], []
    for turn in turns:
        if turn["role"] in ("system", "user") and not isinstance(turn.get("content"), str):
            raise refused(f"the content of a {turn['role']} message must be text: {shown(turn)}")
        if turn["role"] == "system":
            waiting += [turn["content"]] if turn["content"].strip() else []
        elif turn["role"] == "user" and waiting:
            put.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            put.append(turn)
    if waiting:
        raise refused("no user message follows the system message, which is put into it")
    return put


def _in_form(turn: dict[str, Any], form: dict[str, bool]) -> dict[str, Any]:
    """Return a message in the form that the chat template takes, as in training."""
    turn = dict(turn)
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [
            _call_in_form(call, as_text=form.get("has_text_arguments", False)) for call in calls
        ]
        if not turn.get("content"):
            turn["content"] = "" if form.get("has_empty_content", True) else None
    if form.get("has_parts") and isinstance(turn.get("content"), str):
        turn["content"] = [{"type": "text", "text": turn["content"]}]
    return turn


def _call_in_form(call: Any, *, as_text: bool) -> Any:  # noqa: ANN401
    """Return a tool call whose arguments are JSON text, or the object that the text stands for."""
    function = dict(call.get("function", {}))
    arguments = function.get("arguments", {})
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise refused(f"the arguments of a tool call are not JSON: {shown(arguments)}") from error
    if not as_text:
        function["arguments"] = given
    elif not isinstance(arguments, str):
        function["arguments"] = json.dumps(given, ensure_ascii=False)
    return {**call, "type": call.get("type", "function"), "function": function}
