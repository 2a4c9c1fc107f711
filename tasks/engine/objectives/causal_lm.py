"""The task of continuing a text: tokens are learnt, and answers generated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, Task, TrainingSettings
from tasks.engine.base.base_models import mixed_precision
from tasks.engine.base.input_limits import limits_of
from tasks.engine.base.task_traits import TaskTraits, traits_of
from tasks.engine.batching.batches import Batches, Part
from tasks.engine.data.examples import Split
from tasks.engine.data.prompts import Prompt
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.row_formats import Example
from tasks.engine.data.tokenization import Tokenized, TokenizedRow, tokenize_split
from tasks.engine.objectives.generation import Generating
from tasks.errors import UserError
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tasks.engine.batching.choice import BatchingChoice
    from tasks.engine.data.prepared_data import PreparedData


@dataclass(frozen=True)
class CausalLM(Generating):
    """A causal language model; see `Objective`."""

    traits: ClassVar[TaskTraits] = traits_of(Task.CAUSAL_LM)
    row_type: ClassVar[type[TokenizedRow]] = TokenizedRow

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource,
    ) -> Iterator[Tokenized]:
        """Return each row's tokens, with labels where the loss is."""
        positions = limits_of(base).fixed_positions
        return tokenize_split(split, renderer, settings, positions=positions)

    def choose_batching(
        self, settings: TrainingSettings, data: "PreparedData", model: "PreTrainedModel"
    ) -> "BatchingChoice":
        """Choose the fastest way that is shown to be right."""
        from tasks.engine.batching.choice import choose_batching

        return choose_batching(settings, data, model)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Give the way of batching that was chosen."""
        from tasks.engine.batching.choice import make_batches

        return make_batches(plan, pad_token_id)

    def loss(
        self, model: "PreTrainedModel", part: Part, plan: TrainingPlan
    ) -> tuple["Tensor", None]:
        """Give the cross entropy of the part's labels; the likeliest tokens are not of interest."""
        from tasks.engine.batching.loss import summed_loss

        return summed_loss(model, part, in_chunks=plan.loss_in_chunks), None

    def label_nats(self, model: "PreTrainedModel", part: Part) -> "Tensor":
        """Give each labelled token's cross entropy."""
        from tasks.engine.batching.loss import labelled_logits, nats

        with mixed_precision(model):
            return nats(labelled_logits(model, part), part["labels"])

    def prompt(self, renderer: Renderer, example: Example) -> Prompt:
        """Return all that precedes the answer; a plain text is to be continued.

        Raises:
            UserError: the row has words to tag.
        """
        if example.words:
            raise UserError(f"row {example.row}: a language model answers no column tokens")
        return renderer.prompt(example) if example.text is None else Prompt(example.text)

    def expected(self, renderer: Renderer, example: Example) -> str:
        """Return what an answer is read as that repeats the trained one."""
        return renderer.expected(example)
