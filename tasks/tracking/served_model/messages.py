"""Read a row's conversation and tools into the one form that a training's rows are read into."""

from typing import Any

from .request_errors import refused, shown
from .rows import cell_of, parsed, text_of

_ROLES = {
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
    "ipython": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_RENDERED = {
    "role",
    "content",
    "reasoning_content",
    "thinking",
    "tool_calls",
    "name",
    "tool_call_id",
}
"""What a chat template gets in training; clients and rows have other keys, too."""


def conversation_of(messages: Any, ends: list[str]) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return a conversation to answer; an answer that it ends in, as held-out rows do, is left out.

    Raises:
        RequestError: it is not a list of messages, or asks nothing.
    """
    turns = parsed(messages)
    if not turns or not isinstance(turns, list) or not all(map(_is_turn, turns)):
        given = shown(messages)
        raise refused(f"messages must be a list of objects with role and content: {given}")
    turns = list(map(_as_trained, turns))
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    turns = [
        turn | {"content": _content(turn, number, ends)} for number, turn in enumerate(turns, 1)
    ]
    if not turns or not (turns[-1]["role"] == "tool" or _asks(turns[-1])):
        raise refused("messages ends without a question: the last message to answer is empty")
    return turns


def _asks(turn: dict[str, Any]) -> bool:
    return bool((turn["content"] or "").strip() or turn.get("tool_calls"))


def _is_turn(given: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(given, dict)
        and isinstance(given.get("role"), str)
        and ("content" in given or bool(given.get("tool_calls") or given.get("function_call")))
    )


def _content(turn: dict[str, Any], number: int, ends: list[str]) -> Any:  # noqa: ANN401
    content, is_answer = turn.get("content"), turn["role"] == "assistant"
    if is_answer and turn.get("tool_calls") and not content:
        return content
    content = text_of(content, f"the content of message {number}", may_be_blank=True)
    # As in training: the template writes the end of an answer.
    end = next((one for one in ends if is_answer and content.rstrip().endswith(one)), "")
    return content.rstrip().removesuffix(end) if end else content


def _as_trained(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the one form that the rows of a training are read into.

    Clients write a text as parts, other names of roles, and OpenAI's former `function_call`.
    """
    turn = {**turn, "role": _ROLES.get(turn["role"], turn["role"])}
    if isinstance(content := _with_list(turn.get("content")), list):
        turn["content"] = "".join(map(_text_of_part, content))
    if (call := turn.pop("function_call", None)) and not turn.get("tool_calls"):
        turn["tool_calls"] = [{"type": "function", "function": call}]
    if reasoning := next((turn[key] for key in _REASONING if turn.get(key)), None):
        turn |= {"reasoning_content": reasoning, "thinking": reasoning}
    return {key: value for key, value in turn.items() if key in _RENDERED}


def _with_list(content: Any) -> Any:  # noqa: ANN401
    """Return a content whose parts, if it has any, are a list and not an array of a table."""
    return content.tolist() if hasattr(content, "tolist") else content


def _text_of_part(part: Any) -> str:  # noqa: ANN401
    text = part.get("text", part.get("value")) if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type") != "text":
        raise refused(f"only parts of the type text are supported, with a text: {shown(part)}")
    return text


def tools_of(row: dict[str, Any]) -> list[Any] | None:
    """Return the tools that a row names, as a list or as JSON; None without any."""
    tools = parsed(cell_of(row, "tools"))
    if tools is None or tools == "":
        return None
    if not isinstance(tools, list):
        raise refused(f"tools must be a list of tools: {shown(tools)}")
    return [_whole_tool(tool) for tool in tools] or None


def _whole_tool(tool: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a tool as `{"type": "function", "function": …}`, as in training."""
    tool = parsed(tool)
    if not isinstance(tool, dict):
        raise refused(f"tools must be a list of tools, but one is {shown(tool)}")
    if "function" in tool and "type" in tool:
        return dict(tool)
    inner = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": tool.get("function", inner)}
