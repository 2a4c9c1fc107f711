"""The interface of an objective: tokens, batches, loss, metrics, prompts and answers of a task.

A new objective is a class with these methods, in a file of its own, and an entry in the registry.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tasks.config import DataSettings, TrainingSettings
from tasks.engine.base import TaskTraits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batching import Batch, Batches, BatchingChoice, MicroBatch
    from tasks.engine.data.rendering import Prompt, Renderer
    from tasks.engine.data.rows import Example
    from tasks.engine.data.splits import Split
    from tasks.engine.data.tokens import PreparedData, Tokenized, TokenizedRow
    from tasks.records import BaseSource, TrainingPlan


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt."""

    text: str
    probability: float | None = None
    """Probability of the predicted class by the softmax over all classes, the lowest one where
    there are several; None for generated text."""


class EachLabel:
    """The part of `Objective` for losses that are a sum over labels, each of which counts alone."""

    measures: ClassVar[tuple[str, ...]] = ()

    def named(self, means: Sequence[float]) -> dict[str, float]:
        """Return each measure's mean by its name."""
        return dict(zip(self.measures, means, strict=True))

    def complete(
        self,
        batches: "Sequence[Batch]",
        total: Callable[[float], float],
        model: "PreTrainedModel",
        plan: "TrainingPlan",
    ) -> None:
        """Add nothing."""


class Objective(Protocol):
    """Everything that depends on the task."""

    @property
    def traits(self) -> TaskTraits:
        """The properties of the task that do not depend on model or data."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what is measured of each item in training, beside the loss; often none."""
        ...

    def named(self, means: Sequence[float]) -> dict[str, float]:
        """Return what is logged of the means of the measures over some items, by its name."""
        ...

    @property
    def row_type(self) -> "type[TokenizedRow]":
        """The class of the tokenized rows."""
        ...

    def tokenize(
        self, split: "Split", renderer: "Renderer", settings: DataSettings, base: "BaseSource"
    ) -> "Iterator[Tokenized]":
        """Yield the examples of a split as tokens and labels, in their order.

        Args:
            split: the examples.
            renderer: renders them as text; has the tokenizer.
            settings: the most tokens of a row, and what to do with a longer one.
            base: the model they are for, with the classes in the order of its outputs.

        Raises:
            UserError: a row can't be rendered, or a setting does not apply to the task.
        """
        ...

    def choose_batching(
        self, settings: TrainingSettings, data: "PreparedData", model: "PreTrainedModel"
    ) -> "BatchingChoice":
        """Choose how rows become batches.

        Raises:
            UserError: `training.batching` asks for what the task, model or rows do not allow.
        """
        ...

    def make_batches(self, plan: "TrainingPlan", pad_token_id: int) -> "Batches":
        """Return the collator that the plan names."""
        ...

    def loss(
        self, model: "PreTrainedModel", micro_batch: "MicroBatch", plan: "TrainingPlan"
    ) -> tuple["Tensor", "Tensor | None"]:
        """Return the loss summed over a micro-batch's labels, in nats; and predictions.

        The loss, a cross entropy unless preferences are learned, is a float32 scalar. The
        predictions are int64 of the labels' shape, or None where the task has no metrics on them.
        In their place, an objective with `measures` returns these, float32 [items, 1, measures].
        """
        ...

    def complete(
        self,
        batches: "Sequence[Batch]",
        total: Callable[[float], float],
        model: "PreTrainedModel",
        plan: "TrainingPlan",
    ) -> None:
        """Add to the micro-batches of an optimizer step what depends on all of them, if any.

        Args:
            batches: this process's share of the step, which may be without any items.
            total: returns the sum of a number over all processes, each of which has to call it.
            model: as it is before the step.
            plan: how the loss is computed.
        """
        ...

    def label_nll(self, model: "PreTrainedModel", micro_batch: "MicroBatch") -> "Tensor":
        """Return the negative log-likelihood of each label of a micro-batch, in nats.

        It is float32 of the labels' shape, 0 where the label is -100; its sum is the loss.
        """
        ...

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[Any]],
        names: Sequence[str],
    ) -> dict[str, float]:
        """Return the metrics of the predictions on all held-out rows, by name.

        An objective whose loss is no sum over rows returns it, too, as `loss`.

        Args:
            expected: the labels of each row, without ignored ones.
            predicted: the predictions for these labels, of the same lengths, or the measures.
            names: the names of the classes, by their indices.
        """
        ...

    def prompt(self, renderer: "Renderer", example: "Example") -> "Prompt":
        """Return the prompt of an example, without its answer.

        Raises:
            UserError: the example has no column that the task can answer.
        """
        ...

    def expected(self, renderer: "Renderer", example: "Example") -> str:
        """Return the expected answer, in the form in which `answer` returns answers."""
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
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answer prompts, and return the answers in the prompts' order.

        Args:
            model: the model; its active adapters take part.
            tokenizer: its tokenizer.
            prompts: rendered prompts.
            max_new_tokens: most tokens of a generated answer.
            batch_size: prompts per batch.
            on_progress: called after each batch with the number of prompts in it.
            on_text: called with what is settled of a generated answer, token by token; ignored for
                batches of several prompts, and where nothing is generated.

        Raises:
            UserError: a prompt leaves no room for a generated answer.
        """
        ...
