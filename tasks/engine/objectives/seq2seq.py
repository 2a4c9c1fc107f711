"""The task of turning a text into another: the encoder reads one, the decoder writes the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, LossOn, Task
from tasks.engine.base.base_models import mixed_precision
from tasks.engine.base.input_limits import limits_of
from tasks.engine.base.task_traits import TaskTraits, traits_of
from tasks.engine.batching.batches import Batch, Batches, Part, Row, as_batch, cut
from tasks.engine.batching.padded_rows import Padding, longest_input, model_inputs, padded_part
from tasks.engine.data.examples import Split
from tasks.engine.data.prompts import Prompt
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.row_formats import Example
from tasks.engine.data.tokenization import Tokenized, TokenizedRow, naming
from tasks.engine.objectives.generation import Generating
from tasks.errors import UserError
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PairRow(TokenizedRow):
    """One row; `labels` are the tokens of the answer, all of them trained on."""

    labels_are_tokens = False

    @property
    def num_trained_tokens(self) -> int:
        """Count the answer's tokens."""
        return len(self.labels)

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Give the prompt and the answer."""
        return self.input_ids, self.labels


@dataclass(frozen=True)
class PairBatches:
    """Each row a line, prompts and answers padded behind to the longest of their part."""

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Count the tokens of the prompt and of the answer."""
        return len(row["input_ids"]) + len(row["labels"])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows."""

        def num_tokens(part: Sequence[Row]) -> int:
            widest = (max(len(row[name]) for row in part) for name in ("input_ids", "labels"))
            return len(part) * sum(widest)

        parts = cut(rows, self.max_tokens, self.length, num_tokens)
        return as_batch([padded_part(part, self.pad_token_id) for part in parts])


@dataclass(frozen=True)
class Seq2Seq(Generating, Padding):
    """A model of an encoder and a decoder; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.SEQ2SEQ)
    row_type: ClassVar[type[TokenizedRow]] = PairRow

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource,
    ) -> Iterator[Tokenized]:
        """Return the tokens of each prompt and of its answer, both cut where they are too many.

        An answer has room of its own, so none is lost behind its prompt.

        Raises:
            UserError: the loss is asked for on the prompt.
        """
        if settings.loss_on is LossOn.ALL:
            raise UserError(
                "data.loss_on is all, but a seq2seq model reads the prompt and does not write it; "
                "use completion"
            )
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, limits_of(base)))
        for example in split.examples:
            with naming(split.source):
                prompt = self.prompt(renderer, example).tokens(tokenizer)
            answer = tokenizer(text_target=_without_end(example.answer, tokenizer))["input_ids"]
            counts = {
                "num_shortened_answers": int(len(answer) > limit),
                "num_shortened_texts": int(len(prompt) > limit),
            }
            yield Tokenized(example, PairRow(prompt[:limit], answer[:limit]), counts)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Give the way of batching that was chosen."""
        return PairBatches(pad_token_id, plan.batch_tokens)

    def loss(
        self,
        model: "PreTrainedModel",
        part: Part,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", None]:
        """Give the cross entropy of the answers' tokens; the likeliest are not of interest."""
        return self.label_nats(model, part).sum(), None

    def label_nats(self, model: "PreTrainedModel", part: Part) -> "Tensor":
        """Give each answer token's cross entropy."""
        from tasks.engine.batching.loss import nats

        labels = part["labels"]
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
        inputs = model_inputs(part)
        with mixed_precision(model):
            logits = model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        return nats(logits, labels)

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:
        """Return what the encoder reads: all before the answer, with the tokenizer's end token."""
        return Prompt(renderer.prompt(example).text.rstrip())

    def expected(self, renderer: Renderer, example: Example) -> str:  # noqa: ARG002
        """Return the answer: no template writes around what a decoder learns."""
        return example.answer


def _without_end(answer: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Take off the end that the tokenizer adds itself."""
    end = tokenizer.eos_token
    return answer.rstrip().removesuffix(str(end)) if end else answer
