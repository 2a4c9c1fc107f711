"""Every common format of rows is read as conversations; what is malformed is named by its turn."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from documents import PAGES, blocks

from tasks.config import DataSettings, OnLostAnswer, RowFormat, Turns
from tasks.config.columns import COLUMNS
from tasks.config.data import ANSWERED, JUDGED, PREFERENCES
from tasks.engine.data.rows.conversations import Example, Message, ToolCall
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_formats import detect_row_format, read_example, read_question
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.unread_columns import _READ
from tasks.engine.data.splits.examples import content_sha256, read_examples
from tasks.errors import UserError

USER, ANSWER = Message("user", "a"), Message("assistant", "b")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = ToolCall("weather", '{"city": "Oslo", "at": null}', "c1")
RESULT = Message("tool", "rain", tool_call_id="c1")


def turns(*pairs: tuple[str, Any], **last: object) -> list[dict[str, Any]]:
    """Make messages; `last` are more keys of the last one."""
    made = [{"role": role, "content": content} for role, content in pairs]
    made[-1] |= last
    return made


def shared(*pairs: tuple[str, Any], **last: object) -> Row:
    """Make a row of ShareGPT's; `last` are more keys of the last turn."""
    made = [{"from": speaker, "value": value} for speaker, value in pairs]
    made[-1] |= last
    return {"conversations": made}


def chat(*pairs: tuple[str, Any], **last: object) -> Row:
    """Make a row of messages; `last` are more keys of the last one."""
    return {"messages": turns(*pairs, **last)}


def read(row: Row, **more: Any) -> Example:  # noqa: ANN401 - what `read_example` takes
    """Read a row in the format that is detected."""
    return read_example(1, row, detect_row_format(row, "rows"), **more)


TOOL_CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": CALL.arguments},
}
AS_OBJECT = {"name": "weather", "arguments": {"city": "Oslo", "at": None}}
BARE = replace(CALL, id="")
QA = (("user", "a"), ("assistant", "b"))

Case = tuple[str, Row, tuple[Message, ...]]
THOUGHT: list[Case] = [
    (name, chat(*QA, **{name: "Hmm."}), (USER, replace(ANSWER, reasoning="Hmm.")))
    for name in ("reasoning_content", "reasoning", "thinking")
]
CONTEXT = replace(ANSWER, is_trained=False, is_context=True)
WEIGHTS: list[tuple[str, object]] = [
    ("weight", 0),
    ("weight", 0.0),
    ("loss", False),
    ("train", "no"),
    ("masked", True),
]
UNTRAINED: list[Case] = [
    (
        f"{name} of {value!r}",
        {"messages": turns(*QA, **{name: value}) + turns(*QA)},
        (USER, replace(ANSWER, is_trained=False), USER, ANSWER),
    )
    for name, value in WEIGHTS
]

READ: list[Case] = [
    (
        "content in parts",
        chat(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")),
        (USER, ANSWER),
    ),
    (
        "parts called value",
        chat(
            ("user", "a"),
            ("assistant", [{"type": "text", "value": "b"}, {"type": "text", "text": "c"}]),
        ),
        (USER, Message("assistant", "bc")),
    ),
    (
        "reasoning and calls in parts",
        chat(
            ("user", "a"),
            (
                "assistant",
                [
                    {"type": "reasoning", "value": "Hm"},
                    {"type": "thinking", "thinking": "m."},
                    {"type": "tool_call", "value": json.dumps(AS_OBJECT)},
                ],
            ),
        ),
        (USER, Message("assistant", "", reasoning="Hmm.", tool_calls=(BARE,))),
    ),
    (
        "a developer, a name",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "a", "name": "Ann"},
                {"role": "assistant", "content": "b"},
            ]
        },
        (Message("system", "s"), replace(USER, name="Ann"), ANSWER),
    ),
    (
        "tool calls",
        {
            "messages": [
                *turns(("user", "a"), ("assistant", None), tool_calls=[TOOL_CALL]),
                *turns(("tool", "rain"), tool_call_id="c1"),
                *turns(("assistant", "b")),
            ]
        },
        (USER, Message("assistant", "", tool_calls=(CALL,)), RESULT, ANSWER),
    ),
    (
        "a call beside text, without content or type, its arguments an object",
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [{"function": AS_OBJECT}, AS_OBJECT]},
            ]
        },
        (USER, Message("assistant", "", tool_calls=(BARE, BARE))),
    ),
    (
        "the former function_call and role function",
        {
            "messages": [
                *turns(("user", "a"), ("assistant", None), function_call=AS_OBJECT),
                *turns(("function", "rain"), name="weather"),
                *turns(("assistant", "b")),
            ]
        },
        (
            USER,
            Message("assistant", "", tool_calls=(BARE,)),
            Message("tool", "rain", name="weather"),
            ANSWER,
        ),
    ),
    (
        "arguments that are left out",
        chat(*QA, tool_calls=[{"function": {"name": "weather", "arguments": ""}}]),
        (USER, replace(ANSWER, tool_calls=(ToolCall("weather", "{}"),))),
    ),
    *THOUGHT,
    *UNTRAINED,
    ("weights of 1", chat(*QA, weight=1, masked=False), (USER, ANSWER)),
    (
        "ShareGPT",
        shared(("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "a"), ("chatgpt", "b")),
        (Message("system", "s"), USER, ANSWER, USER, ANSWER),
    ),
    (
        "ShareGPT's other column and its system column",
        {"conversation": shared(("human", "a"), ("model", "b"))["conversations"], "system": "s"},
        (Message("system", "s"), USER, ANSWER),
    ),
    ("ShareGPT's column with OpenAI's keys", {"conversations": turns(*QA)}, (USER, ANSWER)),
    (
        "ShareGPT's calls: one, and several, as JSON",
        shared(
            ("human", "a"),
            ("function_call", json.dumps(AS_OBJECT)),
            ("observation", "rain"),
            ("gpt", "And?"),
            ("function_call", json.dumps([AS_OBJECT, AS_OBJECT])),
            ("function_response", "rain"),
            ("tool", "rain"),
            ("gpt", "b"),
        ),
        (
            USER,
            Message("assistant", "", tool_calls=(BARE,)),
            Message("tool", "rain"),
            Message("assistant", "And?", tool_calls=(BARE, BARE)),
            Message("tool", "rain"),
            Message("tool", "rain"),
            ANSWER,
        ),
    ),
    (
        "a call that the text of an answer contains",
        shared(("human", "a"), ("gpt", "<tool_call>{}</tool_call>"), ("tool", "1"), ("gpt", "b")),
        (USER, Message("assistant", "<tool_call>{}</tool_call>"), Message("tool", "1"), ANSWER),
    ),
    ("ShareGPT's weights", shared(("human", "a"), ("gpt", "b"), loss=True), (USER, ANSWER)),
    (
        "lists of prompt and completion: answers in the prompt are context",
        {"prompt": turns(*QA, *QA[:1]), "completion": turns(QA[1]), "system": "s"},
        (Message("system", "s"), USER, CONTEXT, USER, ANSWER),
    ),
    (
        "prompt and completion as a CSV file has lists",
        {"prompt": json.dumps(turns(QA[0])), "completion": json.dumps(turns(QA[1]))},
        (USER, ANSWER),
    ),
    (
        "a prompt that is JSON",
        {"prompt": "[1]", "completion": "b"},
        (Message("user", "[1]"), ANSWER),
    ),
    (
        "reasoning beside a completion",
        {"prompt": "a", "completion": "b", "thinking": "Hmm.", "reasoning": None},
        (USER, replace(ANSWER, reasoning="Hmm.")),
    ),
    (
        "Alpaca's history",
        {"instruction": "a", "history": [["a", "b"]], "output": "b", "system": "s"},
        (Message("system", "s"), USER, ANSWER, USER, ANSWER),
    ),
    (
        "Alpaca's history as JSON, or empty",
        {"instruction": "a", "input": "c", "history": '[["a", "b"]]', "output": "b"},
        (USER, ANSWER, Message("user", "a\n\nc"), ANSWER),
    ),
    ("two answers in a row", chat(*QA, ("assistant", "b")), (USER, ANSWER, ANSWER)),
]


@pytest.mark.parametrize(("row", "messages"), [one[1:] for one in READ], ids=[x[0] for x in READ])
def test_a_row_becomes_a_conversation(row: Row, messages: tuple[Message, ...]) -> None:
    """Whatever the names of its roles, columns and keys, the same is said by the same speakers."""
    assert read(row).messages == messages


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [WEATHER]},
        {"tools": json.dumps([WEATHER])},
        {"tools": [WEATHER["function"]]},
        {"tools": [json.dumps(WEATHER)]},
        {"functions": [WEATHER["function"]], "tools": "[]"},
    ],
)
@pytest.mark.parametrize(
    "row", [chat(*QA), shared(("human", "a"), ("gpt", "b")), {"prompt": "a", "completion": "b"}]
)
def test_tools_have_one_form(row: Row, columns: Row) -> None:
    """As a list or as JSON text, with or without the outer object: it is what templates expect."""
    assert json.loads(read(row | columns).tools) == [WEATHER]
    assert read(row | {"tools": ""}).tools == ""


BAD: list[tuple[Row, str]] = [
    (chat(("bot", "a")), 'message 1 has the role "bot"; possible: system, user, assistant, tool$'),
    (shared(("bard", "a")), 'message 1 of conversations is from "bard"; possible: system, human'),
    ({"conversations": [{"from": "gpt"}]}, "message 1 of conversations .* with from and value"),
    ({"messages": [{"role": "user"}]}, "message 1 is .* with role and content"),
    (chat(("user", None)), "the content of message 1 is null; it must be text"),
    (chat(("user", "a"), ("assistant", " ")), "the content of message 2 is empty"),
    (chat(("user", "a"), ("assistant", None)), "the content of message 2 is null"),
    (chat(("user", [{"type": "image"}])), "the content of message 1 .* only text is supported"),
    (
        chat(("user", "a"), ("assistant", [{"type": "thinking", "text": "c"}])),
        "the content of message 2 is empty",
    ),
    (
        chat(*QA[:1], ("assistant", [{"type": "reasoning", "text": "c"}]), reasoning_content="d"),
        "message 2 has reasoning_content beside its content and in it",
    ),
    (chat(("user", [{"type": "text"}])), "the content of message 1 .* only text is supported"),
    (chat(("user", "a")), "the last message is the user's; it must be the assistant's"),
    (shared(("human", "a")), "the last message is the user's"),
    (chat(("assistant", "b")), "put the user's before it"),
    (chat(*QA, ("system", "s"), *QA), "message 3 is the system's; put it before all others"),
    (chat(("user", "a"), weight=1), "message 1 has the weight 1, but is the user's"),
    (
        chat(("user", "a"), no_separator="yes"),
        'the no_separator of message 1 is "yes"; it must be true or false',
    ),
    (chat(*QA, weight=0.5), "the weight of message 2 is 0.5; it must be 0 or 1"),
    (chat(*QA, weight=0, train=True), "message 2 has train and weight, which differ"),
    (
        chat(("user", "a"), tool_calls=[TOOL_CALL]),
        "message 1 has the key tool_calls, but is the use",
    ),
    (chat(("user", "a"), reasoning="c"), "message 1 has the key reasoning, but is the user's"),
    (chat(*QA, reasoning="c", thinking="d"), "message 2 has reasoning and thinking, which differ"),
    (chat(*QA, reasoning_details=[{}]), "message 2 has the key reasoning_details"),
    (chat(*QA, tools=[WEATHER]), "message 2 has the key tools: .*column tools"),
    (chat(*QA, images=["a.png"]), "message 2 has the key images"),
    (chat(*QA, tool_calls="clock"), 'the tool_calls of message 2: "clock" is not valid JSON'),
    (
        chat(*QA, tool_calls=[{"id": "1"}]),
        "the tool_calls of message 2 is .* without a function's n",
    ),
    (
        chat(*QA, tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]),
        r'the arguments of f in the tool_calls of message 2 are "\[1\]"; they must be a JSON o',
    ),
    (
        chat(*QA, function_call={"name": "f", "arguments": "{'a': 1}"}),
        "the arguments of f in the function_call of message 2: .* is not valid JSON",
    ),
    (
        chat(*QA, tool_calls=[AS_OBJECT, {"name": "f", "arguments": '{"a": 1, "a": 2}'}]),
        "the arguments of f in call 2 of the tool_calls of message 2, the key 'a' is given twice",
    ),
    (
        shared(("human", "a"), ("function_call", "look")),
        'the value of message 2 .* "look" is not v',
    ),
    (chat(*QA, ("tool", "rain"), *QA[1:]), "message 3 is the result of a tool, but .* calls none"),
    (chat(("tool", "rain"), *QA), "message 1 is the result of a tool, but follows no message"),
    (chat(("user", "a"), ("tool", "rain")), "message 2 is the result of a tool, but follows no"),
    (
        {
            "messages": [
                *turns(*QA, tool_calls=[TOOL_CALL]),
                *turns(("tool", "rain"), tool_call_id="c2"),
            ]
        },
        'message 3 has the tool_call_id "c2", which no call before it has; their ids: c1',
    ),
    (chat(*QA) | {"tools": "weather"}, 'tools: "weather" is not valid JSON'),
    (chat(*QA) | {"tools": WEATHER}, "tools is .*; it must be a list of tools"),
    (chat(*QA) | {"tools": [WEATHER, {"type": "function"}]}, "tool 2 of tools .* function's name"),
    (
        chat(*QA) | {"tools": [WEATHER], "functions": ["f"]},
        "the row has tools and functions, which",
    ),
    (chat(*QA) | {"weight": 0.5}, "the weight of the row is 0.5; it must be 0 or 1"),
    (chat(*QA) | {"weight": 0}, "no answer is trained on, as their weights are 0"),
    (chat(*QA, weight=0), "no answer is trained on"),
    (
        {"prompt": turns(QA[0]), "completion": "b"},
        'completion is "b"; it must be a list of messages: prompt and completion are both',
    ),
    ({"prompt": turns(QA[0]), "completion": turns(QA[0])}, "the last message is the user's"),
    ({"prompt": turns(QA[0]), "completion": [{}]}, "message 1 of completion is {}; it must be"),
    ({"prompt": "a", "completion": "b", "reasoning": 1}, "reasoning is 1; it must be text"),
    (
        {"instruction": "a", "output": "b", "history": [["a", "b"], ["c"]]},
        r'pair 2 of history is \["c"\]; history must be a list of pairs',
    ),
    (
        {"instruction": "a", "output": "b", "history": [["a", ""]]},
        "the answer in pair 1 of history",
    ),
    (
        {"prompt": "a", "completion": "b", "history": [["a", "b"]]},
        "a column history: .*as messages",
    ),
    (chat(*QA) | {"tool_calls": [TOOL_CALL]}, "a column tool_calls: .*of the assistant's message"),
    (chat(*QA) | {"reasoning_content": "c"}, "a column reasoning_content: .*assistant's message"),
    (
        chat(("user", "<image> a"), ("assistant", "b")) | {"image_path": "a.png"},
        "a column image_path, and <image> in the text: only text is read",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[one[1] for one in BAD])
def test_a_malformed_row_is_named(tmp_path: Path, row: Row, message: str) -> None:
    """The message names the file, the row, the turn, and what is wrong with it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, row 1: .*{message}") as caught:
        read_examples(DataSettings(train=str(path)), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "completion": "b"}, {"prompt": turns(QA[0]), "completion": turns(QA[1])}],
        [{"prompt": turns(QA[0]), "completion": turns(QA[1])}, {"prompt": "a", "completion": "b"}],
    ],
)
def test_texts_and_lists_are_not_mixed(tmp_path: Path, rows: list[Row]) -> None:
    """What the first row's prompt is, text or messages, the others' are."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: prompt is .*; it must be"):
        read_examples(DataSettings(train=str(path)), seed=0)


def trained(messages: Iterable[Message]) -> list[bool]:
    """Return whether each answer is trained on."""
    return [one.is_trained for one in messages if one.role == "assistant"]


def test_only_the_last_answer_is_trained_on_where_that_is_set() -> None:
    """Earlier ones are context; a weight of 0 counts all the same."""
    history: Row = {"instruction": "a", "history": [["a", "b"]], "output": "b"}
    assert trained(read(history).messages) == [True, True]
    assert trained(read(history, turns=Turns.LAST).messages) == [False, True]
    with pytest.raises(BadRowError, match="no answer is trained on"):
        read(chat(*QA, *QA, weight=0), turns=Turns.LAST)


@pytest.mark.parametrize("row", [chat(*QA, weight=0), chat(*QA) | {"weight": "0"}])
def test_a_row_without_a_trained_answer_may_be_dropped(row: Row) -> None:
    """With `on_lost_answer: drop` a row without a trained answer is read, and dropped later."""
    assert trained(read(row, on_lost_answer=OnLostAnswer.DROP).messages) == [False]


def test_keys_keep_their_order(tmp_path: Path) -> None:
    """Tools and arguments are rendered as the row has them, and so as they will be asked."""
    arguments = {"z": 1, "a": {"y": 2, "b": 3}}
    path = tmp_path / "rows.jsonl"
    row = chat(*QA, tool_calls=[{"name": "f", "arguments": arguments}]) | {"tools": [WEATHER]}
    path.write_text(json.dumps(row))
    split = read_examples(DataSettings(train=str(path)), seed=0).train
    assert split.sha256 == content_sha256([row])
    (example,) = split.examples
    assert example.messages[-1].tool_calls[0].arguments == json.dumps(arguments)
    assert example.tools == json.dumps([WEATHER])


ASKED: list[tuple[Row, tuple[Message, ...]]] = [
    (chat(*QA, *QA[:1]), (USER, ANSWER, USER)),
    (chat(*QA, weight=0.5, tool_calls="?"), (USER,)),
    (chat(*QA, *QA[:1], weight=1) | {"label": False, "weight": 3}, (USER, ANSWER, USER)),
    (
        shared(("human", "a"), ("gpt", "Look"), ("function_call", "?"), ("function_call", "?")),
        (USER,),
    ),
    (
        shared(("human", "a"), ("function_call", json.dumps(AS_OBJECT)), ("observation", "rain")),
        (USER, Message("assistant", "", tool_calls=(BARE,)), Message("tool", "rain")),
    ),
    ({"prompt": turns(QA[0]), "completion": 3}, (USER,)),
    ({"prompt": "a", "reasoning_content": 3}, (USER,)),
    ({"instruction": "a", "history": [["a", "b"]]}, (USER, ANSWER, USER)),
]


@pytest.mark.parametrize(("row", "asked"), ASKED)
def test_a_question_has_the_same_formats(row: Row, asked: tuple[Message, ...]) -> None:
    """Of a row to answer, all but its answer is read, and its tools."""
    _, example = read_question(1, row | {"tools": [WEATHER]})
    assert example.messages == (*asked, Message("assistant", ""))
    assert json.loads(example.tools) == [WEATHER]


@pytest.mark.parametrize(
    "row",
    [
        chat(("user", " "), ("assistant", "b")),
        shared(("human", ""), ("gpt", "b")),
        {"prompt": turns(("user", "\n")), "completion": turns(QA[1])},
    ],
)
def test_a_conversation_that_ends_in_nothing_asks_nothing(row: Row) -> None:
    """A conversation that ends in an empty message is refused, as by the served model."""
    with pytest.raises(BadRowError, match="the last message is empty, so there is no question"):
        read_question(1, row)


def test_each_format_on_the_page_is_read_as_that() -> None:
    """`docs/data.md` has an example of every format, and says which one it is of."""
    (page,) = [page for page in PAGES if page.name == "data.md"]
    shown = [block.text for block in blocks("json") if block.page == page]
    rows: list[Row] = [json.loads(line) for text in shown for line in text.splitlines()]
    formats = {detect_row_format(row, "page", learnable=_learnable(row)): row for row in rows}
    assert formats.keys() == set(RowFormat) - {RowFormat.AUTO}
    for row in rows:
        read_example(1, row, detect_row_format(row, "page", learnable=_learnable(row)))
    named = page.read_text()
    assert all(f"| `{one}` |" in named for one in formats)


def _learnable(row: Row) -> list[RowFormat]:
    if "label" in row:
        return list(JUDGED) if "completion" in row else [RowFormat.LABELLED]
    if "rejected" in row:
        return list(PREFERENCES)
    return [*ANSWERED, RowFormat.TEXT, RowFormat.TAGGED]


def test_every_column_that_can_be_named_is_read() -> None:
    """The names that `data.columns` takes are those of some format."""
    assert set(COLUMNS) <= set().union(*_READ.values())
