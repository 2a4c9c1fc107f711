"""A row is shown as the model sees it, with what is trained on between marks."""

import json
from pathlib import Path

import pytest

from tasks.config import BaseModelSettings, DataSettings
from tasks.engine.data.rendering.rendering import Rendered
from tasks.engine.data.rendering.shown_rows import marked
from tasks.engine.preparation import first_row


def shown(base: Path, folder: Path, row: dict[str, object], **more: object) -> str:
    """Return the only row of a file as it is shown."""
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = more.pop("task", "causal-lm")
    settings = DataSettings.model_validate({"train": str(file), **more})
    base_settings = BaseModelSettings.model_validate({"source": str(base), "task": task})
    return first_row(settings, base_settings).text


CHAT = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]}
HEAD = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        (CHAT, {}, f"{HEAD}⟦b<|im_end|>⟧\n"),
        (CHAT, {"loss_on": "all"}, f"⟦{HEAD}b<|im_end|>\n⟧"),
        ({"prompt": "a", "completion": "b"}, {"template": "plain"}, "a⟦b<|im_end|>⟧"),
        ({"text": "a"}, {}, "⟦a<|im_end|>⟧"),
        (
            {"prompt": "a", "completion": "bcdefghijk"},
            {"template": "plain", "max_length": 8},
            "a⟦bcdefgh⟧ … (truncated)",
        ),
        (
            {"text": "a", "label": "x"},
            {"task": "sequence-classification"},
            "a\n⟦x⟧",
        ),
    ],
)
def test_what_is_trained_on_is_marked(
    tiny_base: Path,
    tmp_path: Path,
    row: dict[str, object],
    settings: dict[str, object],
    expected: str,
) -> None:
    """Special tokens are visible, and an answer's end token belongs to it."""
    assert shown(tiny_base, tmp_path, row, **settings) == expected


def test_long_spans_are_shortened_in_the_middle() -> None:
    """Each span keeps its beginning and its end, and says how much is left out."""
    text = "p" * 5000 + "a" * 3000
    found = marked(Rendered(text, ((5000, 8000),)))
    assert found.startswith("p" * 200 + " … 4,600 characters … p")
    assert found.endswith("a⟧")
    assert "⟦" + "a" * 200 + " … 2,600 characters" in found


def test_a_long_conversation_keeps_both_ends() -> None:
    """Of many turns, those in the middle are counted."""
    text = "".join(f"q{n}a{n}" for n in range(10, 60))
    spans = tuple((6 * n + 3, 6 * n + 6) for n in range(50))
    found = marked(Rendered(text, spans))
    assert found.startswith("q10⟦a10⟧q11")
    assert found.endswith("q59⟦a59⟧")
    assert "parts" in found


def test_a_terminal_obeys_nothing_in_a_row() -> None:
    """Escape sequences are shown as replacement characters."""
    assert marked(Rendered("a\x1b[2J\tb\n", ())) == "a\ufffd[2J\tb\n"
