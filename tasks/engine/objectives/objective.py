"""What depends on what is learnt: tokens, batches, loss, metrics, prompts and answers.

A new objective is one more class of this shape, in a file of its own, and an entry in the
registry.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tasks.config import DataSettings, TrainingSettings
from tasks.engine.base.task_traits import TaskTraits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batching.batches import Batches, Part
    from tasks.engine.batching.choice import BatchingChoice
    from tasks.engine.data.examples import Split
    from tasks.engine.data.prepared_data import PreparedData
    from tasks.engine.data.prompts import Prompt
    from tasks.engine.data.rendering import Renderer
    from tasks.engine.data.row_formats import Example
    from tasks.engine.data.tokenization import Tokenized, TokenizedRow
    from tasks.records import BaseSource, TrainingPlan


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt."""

    text: str
    probability: float | None = None
    """Of a class, by the softmax over all of them (of several, of the least sure one); None of a
    text that was generated."""


class Objective(Protocol):
    """All that differs from task to task."""

    @property
    def traits(self) -> TaskTraits:
        """What is fixed for the task, whatever the model and the data."""
        ...

    @property
    def row_type(self) -> "type[TokenizedRow]":
        """The kind of tokenised rows."""
        ...

    def tokenize(
        self,
        split: "Split",
        renderer: "Renderer",
        settings: DataSettings,
        base: "BaseSource",
    ) -> "Iterator[Tokenized]":
        """Turn the examples of a split into tokens and what is learnt of them, one by one.

        Args:
            split: the examples.
            renderer: how they become text, and the tokenizer.
            settings: longest row, and what to do with one that is longer.
            base: which model they are for, with the classes in the order of its outputs.
        """
        ...

    def choose_batching(
        self, settings: TrainingSettings, data: "PreparedData", model: "PreTrainedModel"
    ) -> "BatchingChoice":
        """Choose how rows become batches."""
        ...

    def make_batches(self, plan: "TrainingPlan", pad_token_id: int) -> "Batches":
        """Give the way of batching that was chosen."""
        ...

    def loss(
        self, model: "PreTrainedModel", part: "Part", plan: "TrainingPlan"
    ) -> tuple["Tensor", "Tensor | None"]:
        """Give the cross entropy summed over a part's labels, in nats; and its predictions.

        The predictions are int64, of the labels' shape; None where nothing is made of them.
        """
        ...

    def label_nats(self, model: "PreTrainedModel", part: "Part") -> "Tensor":
        """Give the cross entropy of each of a part's labels, in nats, float32 of their shape.

        It is 0 where there is no label; a loss is the sum.
        """
        ...

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[int]],
        names: Sequence[str],
    ) -> dict[str, float]:
        """Judge the predictions of all held-out rows, each with as many as it has labels.

        Args:
            expected: the labels.
            predicted: beside them.
            names: of the classes that the numbers stand for.
        """
        ...

    def prompt(self, renderer: "Renderer", example: "Example") -> "Prompt":
        """Return the text that is answered.

        Raises:
            UserError: the example has none.
        """
        ...

    def expected(self, renderer: "Renderer", example: "Example") -> str:
        """Return the right answer, as the task reads answers."""
        ...

    def answer(  # noqa: PLR0913 - what to answer, with what, how long, how many at once
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence["Prompt"],
        *,
        max_new_tokens: int,
        batch_size: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer prompts, in their order."""
        ...
