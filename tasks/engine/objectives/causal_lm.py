"""The objective of causal language models: predict the next token, answer by generation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, Task, TrainingSettings
from tasks.engine.base import TaskTraits, limits_of, mixed_precision, traits_of
from tasks.engine.batching import Batches, MicroBatch
from tasks.engine.data.rendering import Prompt, Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens import Tokenized, TokenizedRow, tokenize_split
from tasks.engine.objectives.generation import Generating
from tasks.errors import UserError
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tasks.engine.batching import BatchingChoice
    from tasks.engine.data.tokens import PreparedData


@dataclass(frozen=True)
class CausalLM(Generating):
    """The objective of a causal language model; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.CAUSAL_LM)
    row_type: ClassVar[type[TokenizedRow]] = TokenizedRow

    def tokenize(
        self, split: Split, renderer: Renderer, settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield each row's tokens, with labels on the tokens that are trained on."""
        positions = limits_of(base).fixed_positions
        return tokenize_split(split, renderer, settings, positions=positions)

    def choose_batching(
        self, settings: TrainingSettings, data: "PreparedData", model: "PreTrainedModel"
    ) -> "BatchingChoice":
        """Choose the fastest kind of batching that is verified for the model and its rows.

        Raises:
            UserError: `training.batching` asks for one that the model or the rows do not allow.
        """
        from tasks.engine.batching import choose_batching

        return choose_batching(settings, data, model)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Return the collator that the plan names."""
        from tasks.engine.batching import make_batches

        return make_batches(plan, pad_token_id)

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor | None"]:
        """Return the summed cross entropy of the labels, in nats, and no predictions."""
        from tasks.engine.batching import summed_loss

        return summed_loss(model, micro_batch, in_chunks=plan.loss_in_chunks), None

    def label_nll(self, model: "PreTrainedModel", micro_batch: MicroBatch) -> "Tensor":
        """Return each label's negative log-likelihood, in nats, float32 [rows, kept]."""
        from tasks.engine.batching import labeled_logits, token_nll

        with mixed_precision(model):
            return token_nll(labeled_logits(model, micro_batch), micro_batch["labels"])

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:
        """Return all that precedes the answer; a plain text is a prompt as it is.

        Raises:
            UserError: the row has words to tag.
        """
        if example.words:
            raise UserError(
                f"row {example.row}: the column tokens is for token classification; a language "
                "model needs messages, prompt, instruction or text"
            )
        return renderer.prompt(example) if example.text is None else Prompt(example.text)

    def expected(self, renderer: Renderer, example: Example) -> str:
        """Return the answer as decoding would return it if the model repeats the trained one."""
        return renderer.expected(example)
