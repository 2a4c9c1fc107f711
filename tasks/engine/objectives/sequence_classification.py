"""The objective of sequence classification: a text belongs to one of several classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from tasks.config import Task
from tasks.engine.base import TaskTraits, traits_of
from tasks.engine.data.rendering import Prompt, Renderer
from tasks.engine.data.rows import Example
from tasks.engine.objectives.classes import Classifying, Guess, class_scores
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError


@dataclass(frozen=True)
class SequenceClassification(Classifying):
    """The objective of a model with one output per class; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.SEQUENCE_CLASSIFICATION)

    def labels(
        self,
        example: Example,
        offsets: Sequence[Sequence[int]],  # noqa: ARG002 - the label is the row's, not a token's
        numbers: Mapping[str, int],
    ) -> list[int]:
        """Return the text's class."""
        return [numbers[example.answer]]

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[int]],
        names: Sequence[str],  # noqa: ARG002 - the scores do not depend on the classes' names
    ) -> dict[str, float]:
        """Return the accuracy over all rows and the macro-averaged F1 of the classes."""
        return class_scores(list(chain(*expected)), list(chain(*predicted)))

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:  # noqa: ARG002
        """Return the text to classify.

        Raises:
            UserError: the row has no column `text`.
        """
        if example.text is None:
            raise UserError(
                f"row {example.row}: the column text, which is to be classified, is missing"
            )
        return Prompt(example.text)

    def read(self, prompt: Prompt, guess: Guess, names: Mapping[int, str]) -> Answer:  # noqa: ARG002
        """Return the text's most likely class and its probability."""
        return Answer(names[guess.classes], guess.probabilities)
