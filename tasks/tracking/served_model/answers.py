"""Read an answer's content out of what the model wrote."""

import re
from typing import Any

from .prompts import RenderedPrompt


def read_answer(tokenizer: Any, asked: RenderedPrompt, tokens: list[int]) -> str:  # noqa: ANN401
    """Return the content of an answer, without special tokens and the template's text around it."""
    if not asked.is_chat:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    text = str(tokenizer.decode(tokens, skip_special_tokens=False))
    added = (str(one.content) for one in tokenizer.added_tokens_decoder.values() if one.special)
    specials = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, specials)) or "(?!)")
    response = _response(tokenizer, text, asked.text)
    if response is not None:
        return special.sub("", response)
    if text.startswith(asked.before):
        text = text.removeprefix(asked.before)
    elif (opening := asked.before.strip()) and text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening).lstrip()
    closing = asked.after.strip()
    if mark := special.search(closing):
        # A base that was not trained to stop continues with further turns.
        text = text.partition(mark.group())[0]
        closing = closing[: mark.start()].rstrip()
    text = special.sub("", text)
    return text.removesuffix(asked.after if text.endswith(asked.after) else closing)


def _response(tokenizer: Any, text: str, prompt: str) -> str | None:  # noqa: ANN401
    """Return the content as parsed by the tokenizer's response template; None without one."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        content = tokenizer.parse_response(text, prefix=prompt).get("content")
    except Exception:  # noqa: BLE001 - a model's output need not match the template
        return None
    return content if isinstance(content, str) and content else None
