"""The objective of encoder-decoder models: the encoder reads a text, the decoder writes one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, LossOn, OnLostAnswer, Task
from tasks.engine.base import TaskTraits, limits_of, mixed_precision, traits_of
from tasks.engine.batching import (
    Batch,
    Batches,
    MicroBatch,
    Padding,
    Row,
    as_batch,
    longest_input,
    model_inputs,
    padded_micro_batch,
    split_rows,
)
from tasks.engine.data.rendering import Prompt, Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens import Tokenized, TokenizedRow, naming
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
        """Return the number of the answer's tokens."""
        return len(self.labels)

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Return the tokens of the prompt and of the answer."""
        return self.input_ids, self.labels


@dataclass(frozen=True)
class PairBatches:
    """One row per line; prompts and answers padded on the right to the longest of the micro-batch.

    `input_ids` and `attention_mask` are int64 [rows, prompt], `labels` int64 [rows, answer], -100
    where padded.
    """

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Return the number of tokens of the prompt and of the answer together."""
        return len(row["input_ids"]) + len(row["labels"])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows."""

        def num_tokens(group: Sequence[Row]) -> int:
            widest = (max(len(row[name]) for row in group) for name in ("input_ids", "labels"))
            return len(group) * sum(widest)

        groups = split_rows(rows, self.max_tokens, self.length, num_tokens)
        return as_batch([padded_micro_batch(group, self.pad_token_id) for group in groups])


@dataclass(frozen=True)
class Seq2Seq(Generating, Padding):
    """The objective of an encoder-decoder model; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.SEQ2SEQ)
    row_type: ClassVar[type[TokenizedRow]] = PairRow

    def tokenize(
        self, split: Split, renderer: Renderer, settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield the tokens of each prompt and of its answer, each truncated to the limit.

        Encoder and decoder have the limit each, so no answer is lost to a long prompt.

        Raises:
            UserError: `data.loss_on` is `all`.
        """
        if settings.loss_on is LossOn.ALL:
            raise UserError(
                "data.loss_on is all, but a seq2seq model does not generate the prompt; use "
                "completion"
            )
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, limits_of(base)))
        for example in split.examples:
            if not example.messages[-1].is_trained and settings.on_lost_answer is OnLostAnswer.DROP:
                yield Tokenized(example, None, {"num_untrained_rows": 1})
                continue
            with naming(split.source):
                _check_answer(example)
                prompt = self.prompt(renderer, example).tokens(tokenizer)
            answer = tokenizer(text_target=_without_end(example.answer, tokenizer))["input_ids"]
            counts = {
                "num_shortened_answers": int(len(answer) > limit),
                "num_shortened_texts": int(len(prompt) > limit),
            }
            yield Tokenized(example, PairRow(prompt[:limit], answer[:limit]), counts)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Return the collator that the plan names."""
        return PairBatches(pad_token_id, plan.batch_tokens)

    def loss(
        self,
        model: "PreTrainedModel",
        micro_batch: MicroBatch,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", None]:
        """Return the summed cross entropy of the answers' tokens, in nats, and no predictions."""
        return self.label_nll(model, micro_batch).sum(), None

    def label_nll(self, model: "PreTrainedModel", micro_batch: MicroBatch) -> "Tensor":
        """Return each answer token's negative log-likelihood, in nats, float32 [rows, answer]."""
        from tasks.engine.batching import token_nll

        labels = micro_batch["labels"]
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
        inputs = model_inputs(micro_batch)
        with mixed_precision(model):
            logits = model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        return token_nll(logits, labels)

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:
        """Return the encoder's input: all before the answer, with the tokenizer's end token."""
        return Prompt(renderer.prompt(example).text.rstrip())

    def expected(self, renderer: Renderer, example: Example) -> str:  # noqa: ARG002
        """Return the answer as it is: no chat template applies to what a decoder writes."""
        return example.answer


def _check_answer(example: Example) -> None:
    """Check that the answer is one that a decoder can learn: a text and nothing else.

    Raises:
        UserError: it calls tools, has reasoning, or is not to be trained on.
    """
    answer = example.messages[-1]
    if answer.tool_calls or answer.reasoning:
        raise UserError(
            f"row {example.row}: the answer has tool calls or reasoning, which a seq2seq model "
            "can't learn; write it as text, or use a causal language model"
        )
    if not answer.is_trained:
        raise UserError(
            f"row {example.row}: its last answer has weight 0, and a seq2seq model learns no "
            "other; remove the row, or set data.on_lost_answer to drop"
        )


def _without_end(answer: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the answer without the end token, which the tokenizer adds itself."""
    end = tokenizer.eos_token
    return answer.rstrip().removesuffix(str(end)) if end else answer
