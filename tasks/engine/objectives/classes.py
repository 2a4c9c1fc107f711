"""What classification objectives share: named classes, and an output layer that the base lacks.

The layer is initialized from a fixed seed, so that a base and its labels determine one model, and
it is trained fully beside the adapter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.config import DataSettings
from tasks.engine.base import limits_in, limits_of, mixed_precision
from tasks.engine.batching import (
    Batches,
    LabeledBatches,
    MicroBatch,
    Padding,
    longest_input,
    model_inputs,
)
from tasks.engine.data.tokens import IGNORED, Tokenized, TokenizedRow, some_at_once
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.objective import Answer, EachLabel
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.data.rendering import Prompt, Renderer
    from tasks.engine.data.rows import Example
    from tasks.engine.data.splits import Split


class ClassifiedRow(TokenizedRow):
    """One row whose labels are classes, as indices of the model's outputs.

    `labels` has one for the row, or one for each token, -100 where the token has none.
    """

    labels_are_tokens = False

    @property
    def num_trained_tokens(self) -> int:
        """Return the number of labels that are trained on."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Classifying(EachLabel, Padding, ABC):
    """The part of `Objective` that models with one output per class share.

    A task adds which labels a text has, and how a prediction is read as an answer.
    """

    row_type: ClassVar[type[TokenizedRow]] = ClassifiedRow

    @abstractmethod
    def labels(
        self, example: "Example", offsets: Sequence[Sequence[int]], numbers: Mapping[str, int]
    ) -> list[int]:
        """Return the labels of a row.

        Args:
            example: with its label or tags.
            offsets: for each token, its characters [start, end) in the text; an empty range for
                special tokens.
            numbers: the classes' indices by their names.
        """

    @abstractmethod
    def read(self, prompt: "Prompt", guess: "Guess", names: Mapping[int, str]) -> Answer:
        """Return the answer that a prediction for a prompt stands for.

        Args:
            prompt: the text.
            guess: the prediction.
            names: the classes' names by their indices.
        """

    def tokenize(
        self, split: "Split", renderer: "Renderer", settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield each text's tokens, truncated on the right to the limit, and its labels."""
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, limits_of(base)))
        numbers = {label: index for index, label in enumerate(base.labels)}
        for examples in some_at_once(split.examples):
            encoded = tokenizer(
                [example.text or "" for example in examples],
                truncation=True,
                max_length=limit,
                return_offsets_mapping=True,
            )
            columns = (encoded["input_ids"], encoded["offset_mapping"], encoded.encodings or ())
            for example, ids, offsets, encoding in zip(examples, *columns, strict=True):
                row = ClassifiedRow(list(ids), self.labels(example, offsets, numbers))
                # What truncation cut off: the row's length does not tell, as a text may just fit.
                is_shortened = bool(encoding.overflowing)
                yield Tokenized(example, row, {"num_shortened_texts": int(is_shortened)})

    def loss(
        self,
        model: "PreTrainedModel",
        micro_batch: MicroBatch,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed cross entropy of the labels, in nats, and the predicted classes.

        The predictions are int64 of the labels' shape.
        """
        from tasks.engine.batching import token_nll

        labels, logits = micro_batch["labels"], class_logits(model, micro_batch)
        return token_nll(logits, labels).sum(), logits.argmax(dim=-1).view(labels.shape)

    def label_nll(self, model: "PreTrainedModel", micro_batch: MicroBatch) -> "Tensor":
        """Return each label's negative log-likelihood, in nats, float32 of the labels' shape."""
        from tasks.engine.batching import token_nll

        return token_nll(class_logits(model, micro_batch), micro_batch["labels"])

    def expected(self, renderer: "Renderer", example: "Example") -> str:  # noqa: ARG002
        """Return the expected label, or the tags separated by single spaces."""
        return example.answer

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Return the collator that the plan names."""
        return LabeledBatches(pad_token_id, plan.batch_tokens)

    def answer(  # noqa: PLR0913 - the signature of all tasks
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence["Prompt"],
        *,
        max_new_tokens: int,  # noqa: ARG002 - nothing is generated
        batch_size: int,
        on_progress: Callable[[int], None] | None = None,
        on_text: Callable[[str], None] | None = None,  # noqa: ARG002 - nothing is generated
    ) -> list[Answer]:
        """Return the most likely classes with their probability; long texts are truncated."""
        names: Any = model.config.id2label
        found = guesses(
            model,
            tokenizer,
            [prompt.text for prompt in prompts],
            batch_size=batch_size,
            on_progress=on_progress,
        )
        answers = {one.index: self.read(prompts[one.index], one, names) for one in found}
        return [answers[index] for index in range(len(prompts))]


def class_logits(model: "PreTrainedModel", micro_batch: MicroBatch) -> "Tensor":
    """Return the logits of a micro-batch, float32 [rows, classes] or [rows, sequence, classes]."""
    with mixed_precision(model):
        return model(**model_inputs(micro_batch)).logits.float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Guess:
    """A model's prediction for a text: the most likely class, or that of each of its tokens."""

    index: int
    """Index of the text among those given."""
    classes: Any
    """Index of the class, or a list with one per token."""
    probabilities: Any
    """Probability of each predicted class, by the softmax over all classes."""
    offsets: list[list[int]]
    """For each token, its characters [start, end) in the text; [0, 0] for padding."""


def guesses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[Guess]:
    """Yield a prediction for each text, in batches of similar length and not in the given order.

    A text that is too long for the model is truncated on the right.

    Args:
        model: a classification model.
        tokenizer: its tokenizer.
        texts: what to classify.
        batch_size: texts per forward pass.
        on_progress: called after each batch with the number of texts in it.
    """
    import torch

    limit = longest_input(tokenizer, limits_in(model))
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[index] for index in indices],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=limit,
            return_offsets_mapping=True,
        )
        offsets = inputs.pop("offset_mapping").tolist()
        with eval_mode(model), torch.inference_mode(), mixed_precision(model):
            logits = model(**model_inputs(inputs.to(model.device))).logits
        best = logits.float().softmax(dim=-1).max(dim=-1)
        lines = zip(indices, best.indices.tolist(), best.values.tolist(), offsets, strict=True)
        yield from (Guess(*line) for line in lines)
        if on_progress:
            on_progress(len(indices))


def class_scores(expected: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Return the accuracy, and the F1 averaged over all classes that are expected or predicted."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macro_f1": float(f1_score(expected, predicted, average="macro", zero_division=0)),
    }
