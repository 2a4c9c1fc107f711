"""The objective of token classification: tagging the words of a text, as in entity recognition.

A word's tag is predicted at the first token that holds some of its characters, as usual (BERT,
arXiv:1810.04805, section 5.3); its other tokens have no label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from tasks.config import Task
from tasks.engine.base import TaskTraits, traits_of
from tasks.engine.data.rendering import Prompt, Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.tokens import IGNORED
from tasks.engine.objectives.class_counts import entity_f1
from tasks.engine.objectives.classes import Classifying, Guess, class_scores
from tasks.engine.objectives.entities import names_entities
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError

UNKNOWN = "?"
"""The tag of a word that the model did not see: it is beyond the length limit, or has no token."""


@dataclass(frozen=True)
class TokenClassification(Classifying):
    """The objective of a model with one output per class for each token; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.TOKEN_CLASSIFICATION)

    def labels(
        self, example: Example, offsets: Sequence[Sequence[int]], numbers: Mapping[str, int]
    ) -> list[int]:
        """Return each word's tag at its first token, -100 at all other tokens."""
        labels = [IGNORED] * len(offsets)
        places = first_tokens(example.words, offsets)
        for place, tag in zip(places, example.tags, strict=True):
            if place is not None:
                labels[place] = numbers[tag]
        return labels

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[int]],
        names: Sequence[str],
    ) -> dict[str, float]:
        """Return the accuracy over all words and the macro-averaged F1 of the tags.

        With tags in IOB format (`B-`, `I-`, `O`), also the F1 of the entities, as exact spans.
        """
        scores = class_scores(list(chain(*expected)), list(chain(*predicted)))
        if names_entities(names):
            rows = [[[names[number] for number in row] for row in x] for x in (expected, predicted)]
            scores["entity_f1"] = entity_f1(*rows)
        return scores

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:  # noqa: ARG002
        """Return the words, separated by single spaces.

        Raises:
            UserError: the row has no column `tokens`.
        """
        if not example.words:
            raise UserError(
                f"row {example.row}: the column tokens, whose words are to be tagged, is missing"
            )
        return Prompt(example.text or "")

    def read(self, prompt: Prompt, guess: Guess, names: Mapping[int, str]) -> Answer:
        """Return the most likely tag of each word, separated by single spaces.

        The probability is the lowest of the words'. The tag of a word that the model does not see
        is `?`.
        """
        places = first_tokens(prompt.text.split(" "), guess.offsets)
        tags = (UNKNOWN if place is None else names[guess.classes[place]] for place in places)
        seen = [guess.probabilities[place] for place in places if place is not None]
        return Answer(" ".join(tags), min(seen, default=0.0))


def first_tokens(words: Sequence[str], offsets: Sequence[Sequence[int]]) -> list[int | None]:
    """Return the index of each word's first token; None for a word without a token.

    Args:
        words: the words of the text, which separates them by single spaces.
        offsets: for each token, its characters [start, end) in the text; an empty range for padding
            and special tokens.
    """
    firsts: list[int | None] = [None] * len(words)
    word, start = 0, 0
    for place, (begins, ends) in enumerate(offsets):
        while word < len(words) and start + len(words[word]) <= begins:
            start += len(words[word]) + 1
            word += 1
        # A token may begin with the space before its word, or be that space alone.
        if word < len(words) and start < ends and begins < ends and firsts[word] is None:
            firsts[word] = place
    return firsts
