"""What is trained on is what the model will be asked to produce, whatever the template does."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from agent_templates import AGENT_SHAPES, CALL, CONVERSATIONS, TOOL_LIST, AgentShape, found, turns
from chat_templates import SHAPES

from tasks.config import DataSettings, LossOn, RowFormat, Template
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversation_rows import prompted_example
from tasks.engine.data.rows.conversations import Example, Message, ToolCall
from tasks.engine.data.rows.row_formats import read_question
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.splits.mixing import Split
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedSplit, tokenize_split
from tasks.errors import UserError
from tasks.records import ChatOptions
from tasks.tracking.served_model import prompts as served_prompts
from tasks.tracking.served_model.prompts import ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_ROWS = {
    ("drops earlier reasoning", "reasoning"): 2,
    ("empty thinking block", "two turns"): 2,
    ("empty thinking block", "system, three turns"): 3,
    ("empty thinking block", "calls"): 2,
    ("empty thinking block", "reasoning"): 2,
    ("thinking switched off", "two turns"): 2,
    ("thinking switched off", "system, three turns"): 3,
    ("thinking switched off", "calls"): 2,
    ("thinking switched off", "reasoning"): 2,
    ("opens otherwise", "two turns"): 2,
    ("opens otherwise", "system, three turns"): 3,
    ("opens otherwise", "calls"): 3,
    ("opens otherwise", "parallel calls"): 2,
    ("thinking switched off", "calls and reasoning"): 2,
    ("thinking switched off in the prompt alone", "two turns"): 2,
    ("thinking switched off in the prompt alone", "system, three turns"): 3,
    ("thinking switched off in the prompt alone", "calls"): 3,
    ("thinking switched off in the prompt alone", "parallel calls"): 2,
    ("thinking switched off in the prompt alone", "reasoning"): 2,
    ("thinking switched off in the prompt alone", "calls and reasoning"): 2,
    ("closes the conversation", "two turns"): 2,
    ("closes the conversation", "system, three turns"): 3,
    ("closes the conversation", "calls"): 3,
    ("closes the conversation", "parallel calls"): 2,
    ("closes the conversation", "reasoning"): 2,
    ("closes the conversation", "calls and reasoning"): 2,
}
"""By template and conversation; one row where none is given."""

REFUSED = {
    ("refuses a system turn", "system, three turns"): "set data.system_in_user to true",
    ("takes calls without content", "parallel calls"): "leaves 'look_up' out of the call",
    ("has no tools", "calls"): "leaves 'look_up' out of the call of the tool",
    ("has no tools", "parallel calls"): "leaves 'look_up' out of the call of the tool",
    ("has no tools", "calls and reasoning"): "leaves 'look_up' out of the call of the tool",
}

CASES = [
    pytest.param(name, conversation, id=f"{name}: {conversation}")
    for name in AGENT_SHAPES
    for conversation in CONVERSATIONS
]


def renderer_of(shape: AgentShape, **options: Any) -> Renderer:  # noqa: ANN401
    """Render as the template does, for a base that stops as its does."""
    chat = ChatOptions(chat_template_kwargs=shape.kwargs, **options)
    return Renderer.of(shape.tokenizer(), Template.CHAT, RowFormat.MESSAGES, shape.end_ids(), chat)


def tokenized(renderer: Renderer, *examples: Example, **settings: Any) -> TokenizedSplit:  # noqa: ANN401
    """Tokenise examples as in training."""
    split = Split("rows.jsonl", "0" * 64, examples)
    chosen = DataSettings(train="rows.jsonl", **settings)
    return TokenizedSplit.of(split, tokenize_split(split, renderer, chosen))


def chat_row(*contents: str) -> list[dict[str, Any]]:
    """Return messages as a row has them; the user begins."""
    return [{"role": one.role, "content": one.content} for one in turns(*contents)]


class Peer:
    """Plain transformers: a template applied to messages, and to what precedes them."""

    def __init__(self, shape: AgentShape, name: str, tools: str) -> None:
        self.shape, self.name = shape, name
        self.tokenizer: PreTrainedTokenizerFast = shape.tokenizer()
        self.tools = json.loads(tools) if tools else None

    def apply(self, messages: Sequence[Message], **options: Any) -> str:  # noqa: ANN401
        """Return the text of the messages."""
        given = [self._as_the_template_takes(one) for one in messages]
        return str(
            self.tokenizer.apply_chat_template(
                given, tools=self.tools, tokenize=False, **options, **self.shape.kwargs
            )
        )

    def _as_the_template_takes(self, message: Message) -> dict[str, Any]:
        given = message.for_template()
        if self.name == "takes parts":
            given["content"] = [{"type": "text", "text": message.content}]
        if self.name == "takes arguments as text":
            for call, one in zip(given.get("tool_calls", ()), message.tool_calls, strict=True):
                call["function"]["arguments"] = one.arguments
        if self.name == "takes calls without content" and message.tool_calls:
            del given["content"]
        return given

    def left_to_generate(self, messages: Sequence[Message], number: int) -> tuple[str, str]:
        """Return what a model is given for an answer, and what it has to write to imitate it."""
        answer = messages[number]
        if self.name.startswith("thinking switched off"):  # the prompt has an empty thinking block
            answer = replace(answer, reasoning="")
        asked = self.apply(messages[:number], add_generation_prompt=True)
        whole = self.apply([*messages[:number], answer])
        common = asked if whole.startswith(asked) else asked.removesuffix(self.shape.given)
        left = whole[len(common) :]
        if self.name == "next role's marker":
            marker = "<|tool|>" if messages[number].tool_calls else "<|user|>"
            return asked, left + marker
        end = "<|return|>" if self.name == "closes the conversation" else "<|im_end|>"
        return asked, left[: left.index(end) + len(end)]


@pytest.mark.parametrize(("name", "conversation"), CASES)
def test_each_answer_is_trained_as_it_is_to_be_generated(name: str, conversation: str) -> None:
    """The trained text is what plain transformers leaves to be generated, in its own context."""
    shape, (messages, tools) = AGENT_SHAPES[name], CONVERSATIONS[conversation]
    renderer, peer = renderer_of(shape), Peer(shape, name, tools)
    example = Example(7, messages, tools=tools)
    if message := REFUSED.get((name, conversation)):
        with pytest.raises(UserError, match=f"row 7: .*{message}"):
            renderer.rows(example)
        return

    rows = renderer.rows(example)

    assert len(rows) == NUM_ROWS.get((name, conversation), 1)
    learned = {(row.text[:a], row.text[a:b]) for row in rows for a, b in row.answers}
    assert learned == {
        peer.left_to_generate(messages, number)
        for number, one in enumerate(messages)
        if one.role == "assistant" and one.is_trained
    }


@pytest.mark.parametrize(("name", "conversation"), CASES)
def test_no_other_token_is_trained(name: str, conversation: str) -> None:
    """Tokens of users, tools and given openings have no label; an example's rows count as one."""
    shape, (messages, tools) = AGENT_SHAPES[name], CONVERSATIONS[conversation]
    if (name, conversation) in REFUSED:
        return
    renderer = renderer_of(shape)
    rows = renderer.rows(Example(7, messages, tools=tools))

    split = tokenized(renderer, Example(7, messages, tools=tools))

    assert (split.record.num_examples, split.record.num_rows) == (1, len(rows))
    for row, rendered in zip(split.rows, rows, strict=True):
        labels = [label for label in row.labels if label != IGNORED]
        answers = "".join(rendered.text[a:b] for a, b in rendered.answers)
        assert renderer.tokenizer.decode(labels) == answers


@pytest.mark.parametrize("name", AGENT_SHAPES)
def test_prompt_is_the_context_of_the_last_answer(name: str) -> None:
    """Samples, evaluation, `predict` and the served model ask as the training did."""
    shape, (messages, tools) = AGENT_SHAPES[name], CONVERSATIONS["calls"]
    renderer, peer = renderer_of(shape, system_in_user=True), Peer(shape, name, tools)
    example = Example(7, (Message("system", "s!"), *messages), tools=tools)

    prompt = renderer.prompt(example)

    merged = (Message("user", f"s!\n\n{messages[0].content}"), *messages[1:-1])
    assert prompt.text == peer.apply(merged, add_generation_prompt=True)
    as_openai = [{"role": "system", "content": "s!"}, *(_as_openai(m) for m in messages[:-1])]
    form = vars(renderer._turns.chat.call_form)
    chat = {**renderer.chat.model_dump(), "message_form": form}
    served = ask(renderer.tokenizer, as_openai, json.loads(tools), chat)
    assert (served.text, served.before, served.after) == (prompt.text, prompt.before, prompt.after)


def _as_openai(message: Message) -> dict[str, Any]:
    """Return a message as clients of OpenAI's interface write it."""
    given = message.for_template()
    if message.tool_calls:
        given["content"] = None
        for call, one in zip(given["tool_calls"], message.tool_calls, strict=True):
            call["function"]["arguments"] = one.arguments
    return given


RESULT = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "y"}]}
OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1}'}}
INNER = {"name": "f", "parameters": {"type": "object"}}
ASKED_BY_CLIENTS: dict[str, dict[str, Any]] = {
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]},
    "developer": {"messages": [{"role": "developer", "content": "s"}, *chat_row("a")]},
    "reasoning": {"messages": [*chat_row("a"), chat_row("a", "b")[1] | {"reasoning": "so"}]},
    "thinking": {"messages": [*chat_row("a"), chat_row("a", "b")[1] | {"thinking": "so"}]},
    "calls": {
        "messages": [
            *chat_row("a"),
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            RESULT,
        ]
    },
    "former calls": {
        "messages": [
            *chat_row("a"),
            {"role": "assistant", "content": None, "function_call": OPENAI_CALL["function"]},
            {"role": "function", "name": "f", "content": "x"},
        ]
    },
    "inner tools": {"messages": chat_row("a"), "tools": [INNER]},
    "tools as JSON": {"messages": chat_row("a"), "tools": json.dumps([INNER])},
}


@pytest.mark.parametrize("name", ASKED_BY_CLIENTS)
def test_a_served_model_reads_what_clients_send_as_training_reads_rows(name: str) -> None:
    """Parts, roles, calls and tools have several forms, which are one to the chat template."""
    asked = ASKED_BY_CLIENTS[name]
    asked = {**asked, "messages": [*asked["messages"], *chat_row("c")]}
    renderer = renderer_of(AGENT_SHAPES["renders all"])
    _, example = read_question(1, asked)
    form = {"message_form": vars(renderer._turns.chat.call_form)}
    served = served_prompts.rendered(renderer.tokenizer, asked, form, [])
    assert served.text == renderer.prompt(example).text


def test_a_served_model_renders_no_key_that_training_does_not() -> None:
    """A template may write all keys; what concerns training alone is none of a question's."""
    said = {"role": "assistant", "content": "b", "weight": 0, "no_separator": True}
    asked: Row = {"messages": [*chat_row("a"), said, *chat_row("c")]}
    renderer = renderer_of(AGENT_SHAPES["renders all"])
    renderer.tokenizer.chat_template = "{% for one in messages %}{{ one | tojson }}{% endfor %}"
    _, example = read_question(1, asked)
    served = served_prompts.rendered(renderer.tokenizer, asked, {}, [])
    assert served.text == renderer.prompt(example).text


def test_what_the_template_leaves_out_is_counted() -> None:
    """Reasoning and tools that the template omits are counted."""
    messages, _ = CONVERSATIONS["reasoning"]
    rendered = renderer_of(AGENT_SHAPES["has no reasoning"]).full(Example(1, messages))
    assert rendered.counts["num_unwritten_reasonings"] == 2

    example = Example(1, turns("fruit?", "apple"), tools=TOOL_LIST)
    rendered = renderer_of(AGENT_SHAPES["has no tools"]).full(example)
    assert rendered.counts["num_unwritten_tools"] == 1


def test_answers_of_weight_0_are_counted_and_cannot_be_trained_in_full() -> None:
    """An answer of weight 0 has no label, and contradicts `loss_on: all`."""
    renderer = renderer_of(AGENT_SHAPES["renders all"])
    example = Example(3, CONVERSATIONS["only the last"][0])

    assert tokenized(renderer, example).record.num_untrained_answers == 1
    with pytest.raises(UserError, match=r"row 3: an answer has weight 0, but data.loss_on is all"):
        tokenized(renderer, example, loss_on=LossOn.ALL)
    nothing = Example(3, (Message("user", "a"), Message("assistant", "b", is_trained=False)))
    with pytest.raises(UserError, match="row 3: no answer is trained on"):
        renderer.rows(nothing)


def test_context_of_a_prompt_is_trained_with_all_tokens() -> None:
    """Earlier answers of a prompt are only context, so that all tokens may be trained on."""
    prompt = chat_row("fruit?", "apple", "more")
    row: Row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "pear"}]}
    renderer = renderer_of(AGENT_SHAPES["renders all"])

    split = tokenized(renderer, prompted_example(1, row), loss_on=LossOn.ALL)

    assert split.rows[0].labels == split.rows[0].input_ids
    assert split.record.num_untrained_answers == 0
    prompt[1]["weight"] = 0
    with pytest.raises(UserError, match=r"an answer has weight 0, but data.loss_on is all"):
        tokenized(renderer, prompted_example(1, row), loss_on=LossOn.ALL)


def test_all_tokens_of_a_conversation_are_trained_once() -> None:
    """With `loss_on: all`, what several rows share is trained in the last one only."""
    renderer = renderer_of(AGENT_SHAPES["empty thinking block"])
    example = Example(1, turns("fruit?", "apple", "more", "pear"))

    first, last = tokenized(renderer, example, loss_on=LossOn.ALL).rows

    assert last.labels == last.input_ids
    assert renderer.tokenizer.decode([one for one in first.labels if one != IGNORED]) == (
        "<think></think>apple<|im_end|>"
    )


def test_later_answers_beyond_the_limit_are_counted() -> None:
    """A conversation keeps the rows that fit, as it keeps the answers that fit in one row."""
    renderer = renderer_of(AGENT_SHAPES["empty thinking block"])
    example = Example(1, turns("fruit?", "apple", "more " * 50, "pear"))

    split = tokenized(renderer, example, max_length=40)

    assert (split.record.num_rows, split.record.num_shortened_answers) == (1, 1)
    assert split.record.num_dropped_rows == 0


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        (turns("fruit?", "apple"), TOOL_LIST, "tools"),
        ((*turns("fruit?", "apple"), found("x"), Message("assistant", "b")), "", "tool results"),
        (
            (Message("user", "a"), Message("assistant", "", tool_calls=(CALL,))),
            "",
            "tool calls",
        ),
        ((Message("user", "a"), Message("assistant", "b", reasoning="c")), "", "reasoning"),
    ],
)
def test_plain_text_has_no_place_for_them(
    messages: tuple[Message, ...], tools: str, what: str
) -> None:
    """Without a chat template, tools and reasoning are refused with one message."""
    renderer = Renderer(SHAPES["chatml"].tokenizer(), Template.PLAIN)
    for render in (renderer.full, renderer.prompt):
        with pytest.raises(UserError, match=f"row 7 has {what}, which only a chat template"):
            render(Example(7, messages, tools=tools))


def test_system_message_without_a_user_is_refused() -> None:
    """A system message without a user message after it is refused."""
    renderer = renderer_of(AGENT_SHAPES["renders all"], system_in_user=True)
    messages = (Message("system", "s"), Message("assistant", "a"))
    with pytest.raises(UserError, match=r"row 7: data.system_in_user is true, but no user message"):
        renderer.rows(Example(7, messages))


def test_argument_that_the_template_drops_is_refused() -> None:
    """A call that is trained without one of its arguments is another call."""
    shape = AgentShape(
        AGENT_SHAPES["renders all"].template.replace(
            "c.function.arguments | tojson",
            "(c.function.arguments | tojson).replace('secret', '')",
        )
    )
    call = ToolCall("look_up", '{"city": "secret"}')
    messages = (Message("user", "a"), Message("assistant", "", tool_calls=(call,)))
    with pytest.raises(UserError, match=r"row 7: .* leaves 'secret' out of the call of the tool"):
        renderer_of(shape).rows(Example(7, messages))


@pytest.mark.parametrize("name", ["renders all", "empty thinking block"])
def test_scoring_labels_the_last_answer_only(name: str) -> None:
    """A held-out conversation is one row, whatever its template and its answers' weights."""
    renderer = replace(renderer_of(AGENT_SHAPES[name]), trains_last_only=True)
    asked, apple, more, pear = turns("fruit?", "apple", "more", "pear")
    example = Example(1, (asked, apple, more, replace(pear, is_trained=False)))

    (row,) = renderer.rows(example)

    (answer,) = (row.text[start:end] for start, end in row.answers)
    assert answer.endswith("pear<|im_end|>")
    assert renderer.expected(example).endswith("pear")


def test_refused_tools_are_not_advised_to_be_plain_text() -> None:
    """Plain text has no place for them either; another template has."""
    shape = AgentShape("{{ messages[1].tool_calls[1].function.name }}")
    messages, tools = CONVERSATIONS["calls"]
    with pytest.raises(UserError, match=r"row 7: .*refuses.*; change the row, or set data\.chat"):
        renderer_of(shape).rows(Example(7, messages, tools=tools))
