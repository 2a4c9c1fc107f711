"""A chat template: it turns the messages of a conversation and its tools into text.

Templates differ in the form of the messages that they take. It is found out once per template, by a
conversation of our own and not by the row, so that all rows are rendered alike.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config.reading import missing_file
from tasks.engine.data.rendering.template_limits import render
from tasks.engine.data.rows import Message, ToolCall
from tasks.engine.reading import reading
from tasks.errors import UserError
from tasks.records import ChatOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "adapterflow-probe"
# Mistral's templates refuse ids of tool calls that do not have exactly nine characters.
_PROBE_CALL = ToolCall("adapterflow_call", json.dumps({"adapterflow_key": _PROBE}), "call00001")
_PROBE_TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "f",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "string", "description": "x"}},
                    "required": ["x"],
                },
            },
        }
    ]
)
_USER = Message("user", "?")


@dataclass(frozen=True)
class MessageForm:
    """The form of the messages that a template takes."""

    has_parts: bool = False
    """Whether contents are lists of parts, as in templates for images and text."""
    has_empty_content: bool = True
    """Whether an answer of tool calls alone has an empty content, and not none."""
    has_text_arguments: bool = False
    """Whether a tool call's arguments are JSON text, as in DeepSeek-V3's, and not an object."""

    def apply(self, message: Message) -> dict[str, Any]:
        """Return the message in this form."""
        given = message.for_template()
        if message.tool_calls:
            if not message.content and not self.has_empty_content:
                del given["content"]
            if self.has_text_arguments:
                for call, one in zip(given["tool_calls"], message.tool_calls, strict=True):
                    call["function"]["arguments"] = one.arguments
        if self.has_parts and "content" in given:
            given["content"] = [{"type": "text", "text": message.content}]
        return given


# The form that transformers documents comes first: a template that takes several gets that one.
_CALL_FORMS = tuple(
    {"has_empty_content": has_empty, "has_text_arguments": has_text}
    for has_text in (False, True)
    for has_empty in (True, False)
)


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer's chat template, and what it is given beside the conversation."""

    tokenizer: "PreTrainedTokenizerBase"
    options: ChatOptions = field(default_factory=ChatOptions)

    def text(self, row: int, messages: Sequence[Message], tools: str = "", *, opened: bool) -> str:
        """Return a conversation as text.

        Args:
            row: the number of its row, for messages.
            messages: the conversation, or its beginning.
            tools: a JSON list; empty without tools.
            opened: whether it ends by opening the assistant's next turn.

        Raises:
            UserError: the template refuses the conversation.
        """
        turns = self.sent(row, messages)
        try:
            return self._chat(turns, tools, self.form(turns), opened=opened)
        except UserError:  # it exceeds a limit
            raise
        except Exception as error:  # a template is a program: it may raise anything
            raise UserError(
                f"row {row}: the chat template refuses the turns "
                f"({', '.join(one.role for one in messages) or 'none'}): {_reason(error)}; "
                f"{self._advice(row, messages, tools, opened=opened)}"
            ) from error

    def sent(self, row: int, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages as the template gets them, the system's in the user's if so set."""
        return _system_in_user(row, messages) if self.options.system_in_user else messages

    def form(self, messages: Sequence[Message]) -> MessageForm:
        """Return the form in which the template takes these messages."""
        return self.call_form if any(one.tool_calls for one in messages) else self._plain_form

    def writes(self, messages: Sequence[Message], tools: str, form: MessageForm) -> bool:
        """Return whether the template writes the probe, and as JSON, in messages of a form."""
        try:
            text = self._chat(messages, tools, form, opened=False)
        except UserError:  # it exceeds a limit
            raise
        except Exception:  # noqa: BLE001 - it takes another form
            return False
        calls = [call for one in messages for call in one.tool_calls]
        # An object's `str` is Python, and no JSON: such templates take arguments as text.
        is_python = any(str(json.loads(call.arguments)) in text for call in calls)
        return _PROBE in text and all(call.name in text for call in calls) and not is_python

    @cached_property
    def _plain_form(self) -> MessageForm:
        return self._found_form(has_calls=False)

    @cached_property
    def call_form(self) -> MessageForm:
        """The form of conversations with tool calls."""
        return self._found_form(has_calls=True)

    def _found_form(self, *, has_calls: bool) -> MessageForm:
        kwargs = json.dumps(self.options.chat_template_kwargs, sort_keys=True)
        return _form(self.tokenizer, str(self.tokenizer.chat_template), kwargs, has_calls)

    def _chat(
        self, messages: Sequence[Message], tools: str, form: MessageForm, *, opened: bool
    ) -> str:
        return render(
            self.tokenizer,
            [form.apply(one) for one in messages],
            tools=_read_tools(tools),
            add_generation_prompt=opened,
            **self.options.chat_template_kwargs,
        )

    def _advice(self, row: int, messages: Sequence[Message], tools: str, *, opened: bool) -> str:
        """Return what to do about a refused conversation."""
        if any(one.role == "system" for one in messages) and not self.options.system_in_user:
            other = ChatTemplate(
                self.tokenizer, self.options.model_copy(update={"system_in_user": True})
            )
            try:
                other.text(row, messages, tools, opened=opened)
            except UserError:
                pass
            else:
                return (
                    "set data.system_in_user to true to put the system message before the text of "
                    "the user's first message"
                )
        if tools or any(one.role == "tool" or one.tool_calls for one in messages):
            return "change the row, or set data.chat_template to a template that takes it"
        return "change the row, or set data.template to plain"


def _system_in_user(row: int, messages: Sequence[Message]) -> list[Message]:
    """Put each system message at the beginning of the user's next message.

    Raises:
        UserError: there is none after it.
    """
    put: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting += [message.content] if message.content.strip() else []
        elif message.role == "user" and waiting:
            put.append(replace(message, content="\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            put.append(message)
    if waiting:
        raise UserError(
            f"row {row}: data.system_in_user is true, but no user message follows the system "
            "message; change the row"
        )
    return put


# Kept beyond one renderer, as prompts are rendered one by one. A tokenizer's template can be
# replaced, so its text is part of the key.
@lru_cache(maxsize=32)
def _form(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,  # noqa: ARG001
    kwargs: str,
    has_calls: bool,  # noqa: FBT001 - a cached function
) -> MessageForm:
    chat = ChatTemplate(tokenizer, ChatOptions(chat_template_kwargs=json.loads(kwargs)))
    answer = (_USER, Message("assistant", _PROBE))
    contents = (MessageForm(), MessageForm(has_parts=True))
    form = next((one for one in contents if chat.writes(answer, "", one)), MessageForm())
    if not has_calls:
        return form
    called = (_USER, Message("assistant", "", tool_calls=(_PROBE_CALL,)))
    forms = [replace(form, **changes) for changes in _CALL_FORMS]
    return next((one for one in forms if chat.writes(called, _PROBE_TOOLS, one)), form)


@lru_cache(maxsize=64)
def _read_tools(tools: str) -> list[Any] | None:
    return json.loads(tools) if tools else None


def _reason(error: Exception) -> str:
    from jinja2 import TemplateError

    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


def unread_kwargs(tokenizer: "PreTrainedTokenizerBase", options: ChatOptions) -> tuple[str, ...]:
    """Return the names of the variables that the chat template never reads."""
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables

    if not options.chat_template_kwargs:
        return ()
    try:
        read = find_undeclared_variables(_parsed(str(tokenizer.get_chat_template())))
    except (TemplateError, RecursionError):  # rendering it names the error, with a row
        return ()
    return tuple(sorted(options.chat_template_kwargs.keys() - read))


def read_chat_template(file: str | None) -> str | None:
    """Read the file of a chat template, if one is given.

    Raises:
        UserError: it can't be read, or is not valid Jinja.
    """
    from jinja2 import TemplateSyntaxError

    if file is None:
        return None
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"data.chat_template: {missing_file(path)}")
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template {path} can't be read as UTF-8: {error}") from error
    if not template.strip():
        raise UserError(f"data.chat_template {path} is empty; it must be a chat template")
    with reading(f"data.chat_template {path} can't be used"):  # it may be nested too deeply
        try:
            _parsed(template)
        except TemplateSyntaxError as error:
            raise UserError(
                f"data.chat_template {path}, line {error.lineno}: {error.message}"
            ) from error
    return template


def _parsed(template: str) -> Any:  # noqa: ANN401 - jinja2 has no type for it
    """Return a template's syntax tree, as transformers would compile it."""
    from jinja2 import Environment

    # transformers adds the tags {% generation %} and {% endgeneration %}, and loop controls.
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    extensions = ["jinja2.ext.loopcontrols"]
    return Environment(extensions=extensions).parse(plain)  # noqa: S701 - it is not rendered
