"""The objective of sequence classification: a text belongs to one of several classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.config import DataSettings, Task
from tasks.engine.base.input_limits import limits_of
from tasks.engine.base.task_traits import TaskTraits, traits_of
from tasks.engine.batching.batches import MicroBatch
from tasks.engine.batching.padded_rows import longest_input
from tasks.engine.data.conversations import Example
from tasks.engine.data.mixing import Split
from tasks.engine.data.prompts import Prompt
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.tokenization import Tokenized, TokenizedRow, some_at_once
from tasks.engine.objectives.classes import Classifying, class_logits, class_scores, guesses
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassifiedRow(TokenizedRow):
    """One row; `labels` holds one number, the index of its class among the model's outputs."""

    labels_are_tokens = False

    @property
    def num_trained_tokens(self) -> int:
        """Return the number of labels that are trained on: one, the row's class."""
        return len(self.labels)


@dataclass(frozen=True)
class SequenceClassification(Classifying):
    """The objective of a model with one output per class; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.SEQUENCE_CLASSIFICATION)
    row_type: ClassVar[type[TokenizedRow]] = ClassifiedRow

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource,
    ) -> Iterator[Tokenized]:
        """Yield each text's tokens, truncated on the right to the limit, and its class."""
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, limits_of(base)))
        number = {label: index for index, label in enumerate(base.labels)}
        for examples in some_at_once(split.examples):
            texts = [example.text or "" for example in examples]
            ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
            # A row of exactly `limit` tokens may or may not have been truncated: tokenize it again.
            full = [text for text, one in zip(texts, ids, strict=True) if len(one) == limit]
            uncut = iter(tokenizer(full)["input_ids"] if full else [])
            for example, one in zip(examples, ids, strict=True):
                row = ClassifiedRow(list(one), [number[example.answer]])
                is_shortened = len(one) == limit and len(next(uncut)) > limit
                yield Tokenized(example, row, {"num_shortened_texts": int(is_shortened)})

    def loss(
        self,
        model: "PreTrainedModel",
        micro_batch: MicroBatch,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed cross entropy of the rows' classes, in nats, and the predicted ones.

        The predictions are int64 [rows, 1].
        """
        from tasks.engine.batching.loss import token_nll

        logits = class_logits(model, micro_batch)
        return token_nll(logits, micro_batch["labels"]).sum(), logits.argmax(dim=-1, keepdim=True)

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
        """Return each text's most likely class and its probability; long texts are truncated."""
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
