"""The tools of a row and the calls of them, read from the forms that datasets have them in."""

import json
from typing import Any

from tasks.engine.data.rows.cells import is_empty, one_of, parsed, text
from tasks.engine.data.rows.conversations import ToolCall
from tasks.engine.data.rows.json_values import DuplicateKeyError, parse_json
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import excerpt, shown

TOOL_COLUMNS = ("tools", "functions")
"""The columns of tools; the second is OpenAI's former name."""


def read_tools(row: Row) -> str:
    """Return the tools of a row as a JSON list of `{"type": "function", "function": …}`.

    They may be a list or JSON text, and lack the outer object. Without any the result is empty.

    Raises:
        BadRowError: it is not a list, or a tool has no name.
    """
    name = one_of(row, TOOL_COLUMNS)
    if not name:
        return ""
    given = row[name]
    given = _json(given, name) if isinstance(given, str) else given
    if not isinstance(given, list):
        raise BadRowError(f"{name} is {shown(given)}; it must be a list of tools, or one as JSON")
    tools = [_tool(one, f"tool {number} of {name}") for number, one in enumerate(given, 1)]
    return _written(tools, name)


def _tool(given: object, name: str) -> dict[str, object]:
    tool = _json(given, name) if isinstance(given, str) else given
    tool = tool if isinstance(tool, dict) else {}
    function = tool.get("function", {key: tool[key] for key in tool if key != "type"})
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise BadRowError(
            f"{name} is {shown(given)}, without a function's name; write it as "
            '{"type": "function", "function": {"name": …, "parameters": …}}'
        )
    is_whole = "function" in tool and "type" in tool
    return tool if is_whole else {"type": "function", "function": function}


def read_calls(given: object, name: str) -> tuple[ToolCall, ...]:
    """Return the calls in a list of them, or a single call.

    A call is `{"function": {"name": …, "arguments": …}}` or its inner object; all of it, and the
    arguments, may be JSON text.

    Args:
        given: the calls.
        name: what they are, for messages.

    Raises:
        BadRowError: a call has no name, or arguments that are no JSON object.
    """
    found = _json(given, name) if isinstance(given, str) else given
    calls = found if isinstance(found, list) else [found]
    if not calls:
        raise BadRowError(f"{name} is {shown(given)}; it must contain a call")
    return tuple(
        _call(one, f"call {number} of {name}" if len(calls) > 1 else name)
        for number, one in enumerate(calls, 1)
    )


def _call(given: object, name: str) -> ToolCall:
    call = _json(given, name) if isinstance(given, str) else given
    call = call if isinstance(call, dict) else {}
    function = parsed(call.get("function", call), name)
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise BadRowError(
            f"{name} is {shown(given)}, without a function's name; write a call as "
            '{"name": …, "arguments": {…}}'
        )
    identity = call.get("id")
    return ToolCall(
        text(function["name"], f"the function's name in {name}"),
        _arguments(
            function.get("arguments"), f"the arguments of {excerpt(function['name'])} in {name}"
        ),
        text(identity, f"the id of {name}") if identity is not None else "",
    )


def _arguments(given: object, name: str) -> str:
    """Return the arguments of a call as a JSON object, which chat templates read."""
    if is_empty(given):
        return "{}"
    found = _json(given, name) if isinstance(given, str) else given
    if not isinstance(found, dict):
        raise BadRowError(f"{name} are {shown(given)}; they must be a JSON object")
    return text(given, name) if isinstance(given, str) else _written(found, name)


def _json(given: str, name: str) -> object:
    try:
        return parse_json(given)
    except DuplicateKeyError as error:
        raise BadRowError(f"in {name}, {error}; keep one of the two") from error
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{name}: {shown(given)} is not valid JSON ({error})") from error


def _written(given: Any, name: str) -> str:  # noqa: ANN401 - anything that JSON can hold
    # Parquet and datasets have values that JSON lacks, such as dates.
    return text(json.dumps(given, ensure_ascii=False, default=str), name)


def _is_name(given: object) -> bool:
    return isinstance(given, str) and bool(given.strip())
