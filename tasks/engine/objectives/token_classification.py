"""The objective of token classification: tagging the words of a text, as in entity recognition.

A word's tag is predicted at the first token that holds some of its characters, as usual (BERT,
arXiv:1810.04805, section 5.3); its other tokens have no label.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tasks.engine.data.tokenization import IGNORED, Tokenized, TokenizedRow, some_at_once
from tasks.engine.objectives.class_counts import entity_f1
from tasks.engine.objectives.classes import Classifying, Guess, class_logits, class_scores, guesses
from tasks.engine.objectives.entities import names_entities
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNKNOWN = "?"
"""The tag of a word that the model did not see: it is beyond the length limit, or has no token."""


class TaggedRow(TokenizedRow):
    """One row; `labels[i]` is a word's tag at its first token, -100 at all other tokens."""

    labels_are_tokens = False

    @property
    def num_trained_tokens(self) -> int:
        """Return the number of words that are trained on."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class TokenClassification(Classifying):
    """The objective of a model with one output per class for each token; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.TOKEN_CLASSIFICATION)
    row_type: ClassVar[type[TokenizedRow]] = TaggedRow

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource,
    ) -> Iterator[Tokenized]:
        """Yield each row's tokens, truncated on the right to the limit, and its words' tags."""
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, limits_of(base)))
        number = {label: index for index, label in enumerate(base.labels)}
        for examples in some_at_once(split.examples):
            encoded = tokenizer(
                [example.text or "" for example in examples],
                truncation=True,
                max_length=limit,
                return_offsets_mapping=True,
            )
            for ids, offsets, example in zip(
                encoded["input_ids"], encoded["offset_mapping"], examples, strict=True
            ):
                labels = [IGNORED] * len(ids)
                places = first_tokens(example.words, offsets)
                for place, tag in zip(places, example.tags, strict=True):
                    if place is not None:
                        labels[place] = number[tag]
                is_shortened = len(ids) == limit and places[-1] is None
                row = TaggedRow(list(ids), labels)
                yield Tokenized(example, row, {"num_shortened_texts": int(is_shortened)})

    def loss(
        self,
        model: "PreTrainedModel",
        micro_batch: MicroBatch,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed cross entropy of the words' tags, in nats, and each token's prediction.

        The predictions are int64 [rows, sequence].
        """
        from tasks.engine.batching.loss import token_nll

        logits = class_logits(model, micro_batch)
        return token_nll(logits, micro_batch["labels"]).sum(), logits.argmax(dim=-1)

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
        """Return the most likely tag of each word, separated by single spaces.

        The probability is the lowest of the words'. The tag of a word that the model does not see
        is `?`.
        """
        names: Any = model.config.id2label
        found = guesses(
            model,
            tokenizer,
            [prompt.text for prompt in prompts],
            batch_size=batch_size,
            on_progress=on_progress,
        )
        answers = {
            one.index: _tags(prompts[one.index].text.split(" "), one, names) for one in found
        }
        return [answers[index] for index in range(len(prompts))]


def _tags(words: Sequence[str], guess: Guess, names: Mapping[int, str]) -> Answer:
    places = first_tokens(words, guess.offsets)
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
