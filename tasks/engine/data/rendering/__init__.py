"""Examples to text: chat templates, the answers in a text, prompts, and the limits of templates."""

from tasks.engine.data.rendering.chat_template import (
    ChatTemplate,
    read_chat_template,
    unread_kwargs,
)
from tasks.engine.data.rendering.prompts import Prompt, encode
from tasks.engine.data.rendering.rendering import Rendered, Renderer, choose_template
from tasks.engine.data.rendering.shown_rows import END, START, answered, marked, seen, shown_text
from tasks.engine.data.rendering.template_limits import Trial, start, try_template

__all__ = [
    "END",
    "START",
    "ChatTemplate",
    "Prompt",
    "Rendered",
    "Renderer",
    "Trial",
    "answered",
    "choose_template",
    "encode",
    "marked",
    "read_chat_template",
    "seen",
    "shown_text",
    "start",
    "try_template",
    "unread_kwargs",
]
