"""The tokens that stop generation: where they are in a text, and where they are missing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.engine.data.rendering.prompts import special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EndTokens:
    """The texts of the tokens that stop generation.

    Args:
        tokenizer: with its own end token.
        others: the texts of other end tokens, those of the base.
    """

    tokenizer: "PreTrainedTokenizerBase"
    others: Sequence[str] = ()

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All of them; empty if nothing stops generation."""
        return tuple(one for one in (self.first, *self.others) if one)

    @cached_property
    def first(self) -> str:
        """The tokenizer's, or else one of the base's; empty without any."""
        return str(self.tokenizer.eos_token or next(iter(self.others), ""))

    def closed(self, text: str) -> str:
        """Return the text with an end token after it, and nothing after one that it has."""
        bare = text.rstrip()
        return bare if bare.endswith(self.texts) else text + self.first

    def bare(self, content: str) -> str:
        """Return an answer's content without an end token at its end."""
        if not any(end in content for end in self.texts):
            return content
        end = next((one for one in self.texts if content.rstrip().endswith(one)), "")
        return content.rstrip().removesuffix(end) if end else content

    def are_within(self, content: str) -> bool:
        """Return whether generation would stop within an answer's content."""
        bare = self.bare(content)
        return any(end in bare for end in self.texts)

    def through(self, text: str) -> str:
        """Return the text up to and including its first end token; empty without one."""
        for found in self._special.finditer(text):
            if found.group() in self.texts:
                return text[: found.end()]
        return ""

    def leading(self, text: str) -> str:
        """Return the end token that a text begins with, after any whitespace; else nothing."""
        start = len(text) - len(text.lstrip())
        end = next((one for one in self.texts if text.startswith(one, start)), "")
        return text[: start + len(end)] if end else ""

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Match each special token: one may be the beginning of another."""
        texts = sorted({*special_texts(self.tokenizer), *self.texts}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")
