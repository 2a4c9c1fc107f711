"""A chat template of the user's own, and what it is given beside a conversation."""

from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from tasks.engine.data.rendering.chat_template import read_chat_template, unread_kwargs
from tasks.errors import UserError
from tasks.records import ChatOptions


def test_variables_that_are_never_read_are_named() -> None:
    """A misspelled variable has no effect, and is a warning."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% set effort = effort if effort is defined else 'low' %}{% for m in messages %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% if not m.content %}{% break %}"
        "{% endif %}{% endfor %}{% if not enable_thinking %}{% endif %}"
    )
    options = ChatOptions(
        chat_template_kwargs={"enable_thinking": False, "effort": "high", "enabel_thinking": False}
    )
    assert unread_kwargs(tokenizer, options) == ("enabel_thinking",)
    assert unread_kwargs(tokenizer, ChatOptions()) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "owm.jinja does not exist"),
        (b" ", "is empty"),
        (b"\xff", "can't be read as UTF-8"),
        (b"{{ " + b"(" * 5000 + b"1" + b")" * 5000 + b" }}", "recursion"),
        (b"a\n{% for m in messages %}", "line 2: Unexpected end of template"),
    ],
)
def test_file_that_is_no_template_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """One message names the file, before anything is rendered."""
    (tmp_path / "own.jinja").write_bytes(content or b"{{ messages }}")
    name = "owm.jinja" if content is None else "own.jinja"
    with pytest.raises(UserError, match=f"data.chat_template.*{message}"):
        read_chat_template(str(tmp_path / name))


def test_valid_file_is_read(tmp_path: Path) -> None:
    """The text of the template is recorded, not its path."""
    (tmp_path / "own.jinja").write_text("{% generation %}ä{% endgeneration %}", encoding="utf-8")
    assert read_chat_template(str(tmp_path / "own.jinja")) == "{% generation %}ä{% endgeneration %}"
    assert read_chat_template(None) is None
