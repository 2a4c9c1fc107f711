"""An example to learn from or to answer: a conversation and its tools, a text, or tagged words."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, made by the assistant."""

    name: str
    arguments: str
    """A JSON object as text, with the keys in the order that the row has."""
    id: str = ""

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates expect it: its arguments are an object."""
        call: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "arguments": json.loads(self.arguments)},
        }
        return {**call, "id": self.id} if self.id else call


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str
    reasoning: str = ""
    """What the assistant thought before its answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The assistant's calls of tools; its content may then be empty."""
    name: str = ""
    """The name of the participant, or of the tool whose result this is."""
    tool_call_id: str = ""
    """The id of the call whose result this is."""
    is_trained: bool = True
    """Whether the message is trained on; it has an effect on the assistant's only."""
    is_context: bool = False
    """Whether an answer is not trained on only because it is in its row's prompt."""
    # What was said is the same with and without it.
    no_separator: bool = field(default=False, compare=False)
    """Whether the next message directly continues its text where there is no chat template."""

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it: what it lacks is absent, not empty."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            # Templates read one or the other: Qwen3's the first, gpt-oss's the second.
            message |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.name:
            message["name"] = self.name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True)
class Example:
    """A checked row: messages, the last of them the assistant's, or plain text with any labels."""

    row: int
    """Number of the row in its source, from 1."""
    messages: tuple[Message, ...]
    text: str | None = None
    label: str | None = None
    """The class of the text, where rows are classified."""
    words: tuple[str, ...] = ()
    """The words of the text, where each is classified; in `text` they are joined by spaces."""
    tags: tuple[str, ...] = ()
    """The classes of the words."""
    tools: str = ""
    """The tools that the assistant may call, as a JSON list; empty without any."""
    rejected: tuple[Message, ...] = ()
    """The conversation with the rejected answer, where `messages` has the chosen one; both begin
    with the same prompt."""
    is_desirable: bool | None = None
    """Whether the answer is, where answers are judged one by one."""

    @property
    def as_rejected(self) -> "Example":
        """The example with the rejected answer in place of the chosen one."""
        return replace(self, messages=self.rejected, rejected=())

    @property
    def labels(self) -> tuple[str, ...]:
        """The class of the text, or those of its words."""
        return self.tags if self.label is None else (self.label,)

    @property
    def answer(self) -> str:
        """The assistant's last message, or the text's labels; empty for plain text."""
        return self.messages[-1].content if self.messages else " ".join(self.labels)

    @property
    def question(self) -> str:
        """The message before the answer, or the text."""
        return self.messages[-2].content if self.messages else self.text or ""

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """All messages before the answer."""
        return self.messages[:-1]
