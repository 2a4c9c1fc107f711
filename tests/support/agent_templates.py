"""Chat templates of our own that behave as those of models for agents, and conversations for them.

They differ in what they do with tools, reasoning, earlier turns and the end of a turn.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chat_templates import EACH, LAST_USER, Shape

from tasks.engine.data.rows.conversations import Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOOLS = "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' '"
    " + c.function.arguments | tojson + '</call>' }}{% endfor %}"
)
THOUGHT = (
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
)
OPENED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def chatml(before: str = THOUGHT, calls: str = CALLS, opened: str = OPENED) -> str:
    """Return a template as ChatML: with text before an answer, its calls, and how it is asked."""
    return (
        TOOLS + LAST_USER + EACH + "{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}" + before + "{% endif %}"
        "{{ m.content }}" + calls + "{{ '<|im_end|>\n' }}{% endfor %}" + opened
    )


@dataclass(frozen=True)
class AgentShape(Shape):
    """A template, and what its answers begin with where it opens them otherwise than it asks."""

    given: str = ""
    """The end of the generation prompt that the template writes otherwise before an answer."""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Make a tokenizer with the template."""
        tokenizer = super().tokenizer()
        tokenizer.add_tokens(["<call>", "</call>"])
        return tokenizer


AGENT_SHAPES = {
    "renders all": AgentShape(chatml()),
    "drops earlier reasoning": AgentShape(
        chatml("{% if loop.index0 > ns.last %}" + THOUGHT + "{% endif %}")
    ),
    "empty thinking block": AgentShape(
        chatml(
            "{% if loop.index0 > ns.last %}"
            "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}"
        )
    ),
    "thinking switched off": AgentShape(
        chatml(
            "{% if loop.index0 > ns.last %}"
            "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}",
            opened=OPENED + "{% if add_generation_prompt and enable_thinking is false %}"
            "{{ '<think></think>' }}{% endif %}",
        ),
        kwargs={"enable_thinking": False},
    ),
    "thinking switched off in the prompt alone": AgentShape(
        chatml(
            "{% if loop.index0 > ns.last %}" + THOUGHT + "{% endif %}",
            opened=OPENED + "{% if add_generation_prompt and enable_thinking is false %}"
            "{{ '<think></think>' }}{% endif %}",
        ),
        given="<think></think>",
        kwargs={"enable_thinking": False},
    ),
    "refuses a system turn": AgentShape(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + chatml()
    ),
    "closes the conversation": AgentShape(
        TOOLS
        + EACH
        + "{{ '<|start|>' + m.role + '\n' }}"
        + THOUGHT
        + "{{ m.content }}"
        + CALLS
        + "{{"
        " '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}",
        specials=("<|start|>", "<|return|>", "<|end|>"),
        ends=("<|return|>",),
    ),
    "next role's marker": AgentShape(
        TOOLS
        + EACH
        + "{{ '<|' + m.role + '|>\n' }}"
        + THOUGHT
        + "{{ m.content }}"
        + CALLS
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        specials=("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"),
        ends=("<|im_end|>", "<|user|>", "<|tool|>"),
    ),
    "opens otherwise": AgentShape(
        chatml(
            "{{ '<think>\n' + m.reasoning_content + '</think>' if m.reasoning_content"
            " else '<think></think>' }}",
            opened=OPENED.replace("assistant\n", "assistant\n<think>\n"),
        ),
        given="\n",
    ),
    "takes parts": AgentShape(
        TOOLS
        + EACH
        + "{{ '<|im_start|>' + m.role + '\n' }}"
        + THOUGHT
        + "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
        + CALLS
        + "{{ '<|im_end|>\n' }}{% endfor %}"
        + OPENED
    ),
    "takes arguments as text": AgentShape(
        chatml(calls=CALLS.replace("c.function.arguments | tojson", "c.function.arguments"))
    ),
    "takes calls without content": AgentShape(
        chatml().replace(CALLS, "{% if m.content is not defined %}" + CALLS + "{% endif %}")
    ),
    "has no tools": AgentShape(chatml(calls="").replace(TOOLS, "")),
    "has no reasoning": AgentShape(chatml(before="")),
}

ASKED = Message("user", "What is the capital of France?")
CALL = ToolCall("look_up", '{"city": "Paris", "n": [1, 2.5], "deep": {"on": true}}', "call00001")
OTHER_CALL = ToolCall("look_up", '{"city": "the dog"}', "call00002")
TOOL_LIST = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "look_up",
                "description": "Look a city up.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": "its name"}},
                    "required": ["city"],
                },
            },
        }
    ]
)


def found(text: str, call: ToolCall = CALL) -> Message:
    """Return the result of a call."""
    return Message("tool", text, name=call.name, tool_call_id=call.id)


def turns(*contents: str) -> tuple[Message, ...]:
    """Return a conversation without a system message; the user begins."""
    roles = ("user", "assistant")
    return tuple(Message(roles[place % 2], text) for place, text in enumerate(contents))


CONVERSATIONS: dict[str, tuple[tuple[Message, ...], str]] = {
    "one turn": (turns("fruit?", "apple"), ""),
    "two turns": (turns("fruit?", "apple", "more", "pear"), ""),
    "system, three turns": (
        (Message("system", "be brief"), *turns("fruit?", "apple", "more", "pear", "again", "fig")),
        "",
    ),
    "calls": (
        (
            ASKED,
            Message("assistant", "", tool_calls=(CALL,)),
            found("it is"),
            Message("assistant", "Paris."),
            *turns("thanks", "bye"),
        ),
        TOOL_LIST,
    ),
    "parallel calls": (
        (
            ASKED,
            Message("assistant", "both", tool_calls=(CALL, OTHER_CALL)),
            found("first"),
            found("second", OTHER_CALL),
            Message("assistant", "Paris."),
        ),
        TOOL_LIST,
    ),
    "reasoning": (
        (
            ASKED,
            Message("assistant", "Paris.", reasoning="I recall"),
            Message("user", "sure?"),
            Message("assistant", "yes", reasoning="I am"),
        ),
        "",
    ),
    "calls and reasoning": (
        (
            ASKED,
            Message("assistant", "", reasoning="I must ask", tool_calls=(CALL,)),
            found("it is"),
            Message("assistant", "Paris.", reasoning="so it is"),
        ),
        TOOL_LIST,
    ),
    "only the last": (
        (
            Message("user", "fruit?"),
            Message("assistant", "apple", is_trained=False),
            *turns("more", "pear"),
        ),
        "",
    ),
}
