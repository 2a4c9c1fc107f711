"""A chat template that loops, or takes or writes too much, is refused before it is used here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_models import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer

from tasks.config import BaseModelSettings, DataSettings
from tasks.engine import prepare_data
from tasks.engine.data.rendering import template_limits
from tasks.engine.data.rendering.template_limits import Trial, check_template, render, try_template
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ASK = [{"role": "user", "content": "Hello?"}]

DOUBLE = "{% set ns.x = ns.x + ns.x %}"
EXCESSES = {
    "is unfinished": ("{% if messages %}", "is not a template: Unexpected end of template"),
    "writes": ("{{ 'x' * 5000000 }}", "writes 5,000,000 characters for a user's message"),
    "takes memory": ("{{ 'x' * 3000000000 }}", "takes more than 1 GB of memory"),
    "loops": (LOOP, "does not end within 1 s"),
    "computes": ("{{ 9 ** (9 ** 9) }}", "does not end within|takes more than"),
    "doubles": (
        f"{{% set ns = namespace(x='x') %}}{{% for i in range(99) %}}{DOUBLE}{{% endfor %}}",
        "does not end within|takes more than",
    ),
}


def with_template(template: str) -> "PreTrainedTokenizerBase":
    """Return a tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("template", "told"), EXCESSES.values(), ids=EXCESSES)
def test_an_excess_is_refused(template: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither time, nor memory, nor the text's size is without a limit; the template is named."""
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    with pytest.raises(UserError, match=told) as caught:
        render(with_template(template), ASK)
    assert "chat template" in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ messages.nothing.more }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_a_template_raises_is_the_row_s(template: str) -> None:
    """A template that fails is within its limits: why it fails is reported for the row."""
    check_template(with_template(template))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        render(with_template(template), ASK)
    assert not isinstance(caught.value, UserError)


def test_a_template_is_tried_after_another_was_ended() -> None:
    """After a template that did not end, others are tried as before."""
    with pytest.raises(UserError):
        check_template(with_template("{{ 'x' * 5000001 }}"))
    assert render(with_template("{{ messages[0].content }}"), ASK) == "Hello?"


def test_a_text_beyond_the_limit_is_refused_here_too() -> None:
    """A conversation that the template was not tried on is judged by its text."""
    template = "{{ 'x' * (messages[0].content | length * 100000) }}"
    tokenizer = with_template(template)
    with pytest.raises(UserError, match="at most"):
        render(tokenizer, [{"role": "user", "content": "Tell me more about it, please." * 3}])


def test_a_long_conversation_may_be_long() -> None:
    """The limit is on what the template adds, not on the rows."""
    long = [{"role": "user", "content": "x" * 5_000_000}]
    assert len(render(with_template(CHAT_TEMPLATE), long)) > 5_000_000


def test_an_endless_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that loops for the longest row only is refused with the row's number."""
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    base = tiny_llama(tmp_path / "base")
    loop = f"{{% if messages[0].content | length > 200 %}}{LOOP}{{% endif %}}{CHAT_TEMPLATE}"
    (base / "chat_template.jinja").write_text(loop)
    rows = [{"prompt": f"Row {n}" * (60 if n == 7 else 1), "completion": "Yes"} for n in range(9)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings.model_validate({"train": str(file), "eval_fraction": 0})
    wanted = BaseModelSettings.model_validate({"source": str(base)})
    with pytest.raises(UserError, match=r"chat_template\.jinja does not end.*rows\.jsonl, row 8"):
        prepare_data(settings, wanted, 0, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_a_row_is_tried_with_its_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools are part of what a template is tried on."""
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    tokenizer = with_template("{% if tools %}" + LOOP + "{% endif %}")
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    check_template(tokenizer)
    with pytest.raises(UserError, match="rows, row 1"):
        try_template(tokenizer, [Trial("rows, row 1", ASK, {"tools": tools})])
