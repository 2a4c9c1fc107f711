"""The task of putting a text into one of several classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.config import DataSettings, Task
from tasks.engine.base.base_models import load_config
from tasks.engine.base.sources import BaseSource
from tasks.engine.base.task_traits import TaskTraits, traits_of
from tasks.engine.batching.batches import Part
from tasks.engine.batching.padded_rows import longest_input
from tasks.engine.data.examples import Split
from tasks.engine.data.prompts import Prompt
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.row_formats import Example
from tasks.engine.data.tokenization import TokenizedRow, TokenizedSplit
from tasks.engine.objectives.classes import Classifying, class_logits, class_scores, guesses
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError
from tasks.records import BaseModelRecord, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassifiedRow(TokenizedRow):
    """One row; `labels` holds its class alone, as the number of the model's output."""

    @property
    def num_trained_tokens(self) -> int:
        """Count the labels that a loss falls on: the row's class."""
        return len(self.labels)


@dataclass(frozen=True)
class SequenceClassification(Classifying):
    """A model with one output a class; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.SEQUENCE_CLASSIFICATION)

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource | BaseModelRecord,
        on_progress: Callable[[int, int], None] | None,  # noqa: ARG002 - done at once
    ) -> TokenizedSplit:
        """Give each text's tokens, cut at the end where they are too many, and its class."""
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, load_config(base)))
        texts = [example.text or "" for example in split.examples]
        ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        full = [i for i, one in enumerate(ids) if len(one) == limit]
        whole = tokenizer([texts[i] for i in full])["input_ids"] if full else []
        number = {label: index for index, label in enumerate(base.settings.labels)}
        rows: list[TokenizedRow] = [
            ClassifiedRow(list(one), [number[example.answer]])
            for one, example in zip(ids, split.examples, strict=True)
        ]
        num_shortened = sum(len(one) > limit for one in whole)
        return TokenizedSplit.of(split, rows, num_shortened_texts=num_shortened)

    def loss(
        self,
        model: "PreTrainedModel",
        part: Part,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """Give the cross entropy of the rows' classes, and the likeliest ones."""
        from tasks.engine.batching.loss import nats

        logits = class_logits(model, part)
        return nats(logits, part["labels"]).sum(), logits.argmax(dim=-1, keepdim=True)

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[int]],
        names: Sequence[str],  # noqa: ARG002 - which class is which does not matter
    ) -> dict[str, float]:
        """Give the share of rows that are right, and the mean of the classes' F1."""
        return class_scores(list(chain(*expected)), list(chain(*predicted)))

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:  # noqa: ARG002
        """Give the text.

        Raises:
            UserError: the row has other columns.
        """
        if example.text is None:
            raise UserError(
                f"row {example.row}: what is classified is the column text, which is missing"
            )
        return Prompt(example.text)

    def answer(  # noqa: PLR0913 - the signature of all tasks
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,  # noqa: ARG002 - nothing is generated
        batch_size: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Give each text's likeliest class and its probability; too long a text is cut."""
        names: Any = model.config.id2label
        found = guesses(
            model,
            tokenizer,
            [prompt.text for prompt in prompts],
            batch_size=batch_size,
            on_progress=on_progress,
        )
        answers = {one.index: Answer(names[one.classes], one.probabilities) for one in found}
        return [answers[index] for index in range(len(prompts))]
