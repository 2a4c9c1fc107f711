"""A row as the model sees it: special tokens as text, and what is trained on between ⟦ and ⟧."""

import re

from tasks.config import DataSettings, LossOn, Template
from tasks.engine.data.rendering.prompts import encode
from tasks.engine.data.rendering.rendering import Rendered, Renderer
from tasks.records import ShownRow

START, END = "⟦", "⟧"
_LONGEST_SPAN = 400
_MOST_SPANS = 12
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def marked(rendered: Rendered) -> str:
    """Return a row's text with marks around its answers; long spans are shortened in the middle.

    Control characters other than line breaks and tabs are replaced, as a terminal would obey them.
    """
    spans: list[str] = []
    end = 0
    for start, stop in rendered.answers:
        spans += [_shortened(rendered.text[end:start])]
        spans += [f"{START}{_shortened(rendered.text[start:stop])}{END}"]
        end = stop
    spans.append(_shortened(rendered.text[end:]))
    if len(spans) > _MOST_SPANS:
        half = _MOST_SPANS // 2
        spans[half:-half] = [f" … {len(spans) - 2 * half} parts … "]
    return _CONTROLS.sub("\ufffd", "".join(spans))


def seen(renderer: Renderer, rendered: Rendered, settings: DataSettings) -> Rendered:
    """Return a row with the special tokens that the tokenizer adds, without what is truncated."""
    is_plain = renderer.template is Template.PLAIN
    ids, places = encode(renderer.tokenizer, rendered.text, adds_special_tokens=is_plain)
    kept = places[: settings.max_length]
    end = kept[-1][1] if len(kept) < len(places) else len(rendered.text)
    added = next((n for n, place in enumerate(kept) if place != (0, 0)), len(kept))
    before = "".join(map(str, renderer.tokenizer.convert_ids_to_tokens(ids[:added])))
    spans = ((0, end),) if settings.loss_on is LossOn.ALL else rendered.answers
    shift = len(before)
    return Rendered(
        before + rendered.text[:end] + (" … (truncated)" if end < len(rendered.text) else ""),
        tuple((a + shift, min(b, end) + shift) for a, b in spans if a < end),
    )


def shown_text(shown: ShownRow) -> str:
    """Return which row is shown, and of how many that a conversation becomes."""
    place = f"row {shown.place.row} of {shown.place.source}"
    if shown.num_rows == 1:
        return place
    return f"{place} (it becomes {shown.num_rows} rows, for different answers; this is the last)"


def answered(asked: str, answer: str) -> Rendered:
    """Return a row whose answer is not in its text: a class, tags, or a decoder's text."""
    text = f"{asked}\n{answer}"
    return Rendered(text, ((len(text) - len(answer), len(text)),))


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_SPAN:
        return text
    half = _LONGEST_SPAN // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
