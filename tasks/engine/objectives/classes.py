"""What classifying tasks have in common: named classes, and an output layer that the base lacks.

The layer is made from a fixed seed, so that a base and its labels are one definite model, and it
trains whole beside the adapter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.engine.base.base_models import mixed_precision
from tasks.engine.base.input_limits import limits_in
from tasks.engine.batching.batches import Batches, Part
from tasks.engine.batching.padded_rows import LabelledBatches, Padding, longest_input, model_inputs
from tasks.engine.eval_mode import eval_mode
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.data.rendering import Renderer
    from tasks.engine.data.row_formats import Example


@dataclass(frozen=True)
class Classifying(Padding):
    """What `Objective` asks of a model with one output a class."""

    def label_nats(self, model: "PreTrainedModel", part: Part) -> "Tensor":
        """Give each class's cross entropy."""
        from tasks.engine.batching.loss import nats

        return nats(class_logits(model, part), part["labels"])

    def expected(self, renderer: "Renderer", example: "Example") -> str:  # noqa: ARG002
        """Return the labels."""
        return example.answer

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Give the way of batching that was chosen."""
        return LabelledBatches(pad_token_id, plan.batch_tokens)


def class_logits(model: "PreTrainedModel", part: Part) -> "Tensor":
    """Give the logits of a part, float32 [lines, classes] or [lines, sequence, classes]."""
    with mixed_precision(model):
        return model(**model_inputs(part)).logits.float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Guess:
    """What a model takes a text for: its likeliest class, or that of each of its tokens."""

    index: int
    """Of the text among those that were given."""
    classes: Any
    """The number of the class, or a list of them."""
    probabilities: Any
    """Theirs, by the softmax over all classes."""
    offsets: list[list[int]]
    """Of each token, its characters [start, end) of the text; [0, 0] of padding."""


def guesses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[Guess]:
    """Judge texts in batches of like length; one that is too long for the model is cut."""
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
    """Give the share that is right, and the mean of the classes' F1.

    A class counts that something has, or is put into.
    """
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macro_f1": float(f1_score(expected, predicted, average="macro", zero_division=0)),
    }
