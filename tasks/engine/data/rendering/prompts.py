"""A prompt as a model reads it, and its answer without what a chat template writes around it.

A template may write more than the content of an answer: an empty thinking block before it (Qwen3,
GLM-4.5), the name of a channel (gpt-oss), an end-of-turn token after it. All of that is trained and
generated, but none of it is part of the answer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.engine.excerpts import shown
from tasks.engine.reading import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes some of a character's bytes to."""


@dataclass(frozen=True)
class Prompt:
    """A text to answer, and what a template writes around the content of its answer."""

    text: str
    adds_special_tokens: bool = True
    """Whether the tokenizer has to add its special tokens; a chat template writes them itself."""
    before: str = ""
    """What the template writes between the text and the content."""
    after: str = ""
    """What the template writes after the content."""

    def tokens(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the token ids that a model reads."""
        return encode(tokenizer, self.text, adds_special_tokens=self.adds_special_tokens)[0]

    def read(self, tokenizer: "PreTrainedTokenizerBase", tokens: list[int]) -> str:
        """Return the content of a generated answer, without special tokens."""
        if self.adds_special_tokens:
            return str(tokenizer.decode(tokens, skip_special_tokens=True))
        return self.content(tokenizer, str(tokenizer.decode(tokens, skip_special_tokens=False)))

    def read_settled(self, tokenizer: "PreTrainedTokenizerBase", tokens: list[int]) -> str:
        """Return the beginning of the content that further tokens will not change.

        Held back are what may turn out to be the template's text around the content, and the bytes
        of an incomplete character. A tokenizer that normalizes spaces when it decodes may still
        change the end of the last word.
        """
        if self.adds_special_tokens:
            return self.read(tokenizer, tokens).rstrip(_INCOMPLETE)
        if getattr(tokenizer, "response_template", None) is not None:
            return ""
        text = str(tokenizer.decode(tokens, skip_special_tokens=False)).rstrip(_INCOMPLETE)
        opening = self.before.strip()
        if (self.before and self.before.startswith(text)) or (
            opening and opening.startswith(text.lstrip())
        ):
            return ""
        content = self.content(tokenizer, text)
        held = (_num_shared(content, end) for end in (self.after, self.after.lstrip()))
        return content[: len(content) - max(held)]

    def content(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
        """Return the content of an answer, given its text as it was generated or trained."""
        specials = special_texts(tokenizer)
        if self.adds_special_tokens:
            return _without(specials, text)
        response = _response(tokenizer, text, self.text)
        if response is not None:
            return _without(specials, response)
        if text.startswith(self.before):
            text = text.removeprefix(self.before)
        elif (opening := self.before.strip()) and text.lstrip().startswith(opening):
            text = text.lstrip().removeprefix(opening).lstrip()
        closing = self.after.strip()
        if special := _first(specials, closing):
            # A base that was not trained to stop continues with made-up turns.
            text = text.partition(special)[0]
            closing = closing.partition(special)[0].rstrip()
        text = _without(specials, text)
        return text.removesuffix(self.after if text.endswith(self.after) else closing)


def _num_shared(text: str, other: str) -> int:
    """Return the most characters that a text ends and another one begins with."""
    sizes = range(min(len(text), len(other)), 0, -1)
    return next((size for size in sizes if text.endswith(other[:size])), 0)


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, adds_special_tokens: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return a text's token ids, and the characters [start, end) that each stands for.

    A special token that the tokenizer adds is dropped again if the text already has it there.

    Raises:
        UserError: the tokenizer can't.
    """
    # Without a token for unknown characters, whether it works depends on the text.
    with reading(
        f"the tokenizer of {tokenizer.name_or_path!r} fails", lambda why: f"{why}, on {shown(text)}"
    ):
        encoded = tokenizer(
            text, add_special_tokens=adds_special_tokens, return_offsets_mapping=True
        )
    ids: list[int] = list(encoded["input_ids"])
    places: list[tuple[int, int]] = encoded["offset_mapping"]
    if adds_special_tokens and len(ids) > 1:
        first = int(ids[0] == ids[1] and _is_added(tokenizer, ids[0], places[0], places[1]))
        is_doubled = ids[-1] == ids[-2] and _is_added(tokenizer, ids[-1], places[-1], places[-2])
        last = len(ids) - int(is_doubled)
        return ids[first:last], places[first:last]
    return ids, places


def _is_added(
    tokenizer: "PreTrainedTokenizerBase",
    token: int,
    place: tuple[int, int],
    neighbor: tuple[int, int],
) -> bool:
    """Return whether a special token stands for no character of the text, but its neighbor does."""
    return place == (0, 0) != neighbor and token in tokenizer.all_special_ids


def special_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the texts of the special tokens, which are never part of an answer, longest first."""
    added: Iterable[Any] = tokenizer.added_tokens_decoder.values()
    texts = {str(one.content) for one in added if one.special} | set(tokenizer.all_special_tokens)
    return sorted(texts, key=len, reverse=True)


def _first(specials: Sequence[str], text: str) -> str:
    found = re.search("|".join(map(re.escape, specials)), text) if specials else None
    return found.group() if found else ""


def _without(specials: Sequence[str], text: str) -> str:
    return re.sub("|".join(map(re.escape, specials)), "", text) if specials else text


def _response(tokenizer: "PreTrainedTokenizerBase", text: str, prompt: str) -> str | None:
    """Return the content as the tokenizer's response template reads it, if it has one."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        content = tokenizer.parse_response(text, prefix=prompt).get("content")
    except Exception:  # noqa: BLE001 - generated text need not have the template's form
        return None
    return content if isinstance(content, str) and content else None
