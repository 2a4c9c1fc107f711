"""The task of continuing a text: tokens are learnt, and answers generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import DataSettings, RowFormat, TrainingSettings
from tasks.engine.base_sources import BaseSource
from tasks.engine.batching import Batches, Part
from tasks.engine.examples import Split
from tasks.engine.model_task import Answer
from tasks.engine.rendering import Renderer
from tasks.engine.row_formats import GENERATIVE, Example
from tasks.engine.token_cache import tokenized
from tasks.engine.tokenization import TokenizedSplit, tokenize_split
from tasks.errors import UserError
from tasks.records import BaseModelRecord, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batch_choice import BatchingChoice
    from tasks.engine.prepared_data import PreparedData


@dataclass(frozen=True)
class CausalLM:
    """A causal language model; see `ModelTask`."""

    auto_class: str = "AutoModelForCausalLM"
    peft_task_type: str = "CAUSAL_LM"
    pipeline_tag: str = "text-generation"
    row_formats: tuple[RowFormat, ...] = GENERATIVE
    generates: bool = True

    def complete_config(
        self, config: "PretrainedConfig", source: BaseSource | BaseModelRecord
    ) -> None:
        """Leave the configuration as it is."""

    def head_modules(self, model: "PreTrainedModel") -> list[str]:  # noqa: ARG002
        """Name none: the base has an output layer."""
        return []

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource | BaseModelRecord,  # noqa: ARG002
        on_progress: Callable[[int, int], None] | None,
    ) -> TokenizedSplit:
        """Give tokens with labels where the loss is, as they are kept, or made now."""
        return tokenized(
            split,
            renderer,
            settings,
            lambda: tokenize_split(split, renderer, settings, on_progress),
        )

    def choose_batching(
        self, settings: TrainingSettings, data: "PreparedData", model: "PreTrainedModel"
    ) -> "BatchingChoice":
        """Choose the fastest way that is shown to be right."""
        from tasks.engine.batch_choice import choose_batching

        return choose_batching(settings, data, model)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Give the way of batching that was chosen."""
        from tasks.engine.batch_choice import make_batches

        return make_batches(plan, pad_token_id)

    def loss(
        self, model: "PreTrainedModel", part: Part, plan: TrainingPlan
    ) -> tuple["Tensor", None]:
        """Give the cross entropy of the part's labels; the likeliest tokens are not of interest."""
        from tasks.engine.loss import summed_loss

        return summed_loss(model, part, in_chunks=plan.loss_in_chunks), None

    def metrics(
        self,
        expected: Sequence[Sequence[int]],  # noqa: ARG002
        predicted: Sequence[Sequence[int]],  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge by the loss alone."""
        return {}

    def prompt(self, renderer: Renderer, example: Example) -> str:
        """Give all that precedes the answer; a plain text is to be continued.

        Raises:
            UserError: the row has words to tag.
        """
        if example.words:
            raise UserError(f"row {example.row}: a language model answers no column tokens")
        return renderer.prompt(example) if example.text is None else example.text

    def answer(  # noqa: PLR0913 - what to answer, with what, how long, how many at once
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int,
        adds_special_tokens: bool,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer greedily."""
        from tasks.engine.generation import answer

        texts = answer(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            adds_special_tokens=adds_special_tokens,
            on_progress=on_progress,
        )
        return [Answer(text) for text in texts]
