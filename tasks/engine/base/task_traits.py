"""What a task asks of the base model: its Auto class, its names upstream, its rows and its head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import RowFormat, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATIVE = (
    RowFormat.MESSAGES,
    RowFormat.PROMPT_COMPLETION,
    RowFormat.INSTRUCTION,
    RowFormat.TEXT,
)
"""Formats of rows that are continued or answered."""


@dataclass(frozen=True)
class TaskTraits:
    """What is fixed for a task, whatever the model and the data."""

    auto_class: str
    """The transformers class that loads a model for the task."""
    peft_task_type: str
    pipeline_tag: str
    """The task's name on the Hub."""
    row_formats: tuple[RowFormat, ...]
    """Formats of rows that can be learnt from."""
    generates: bool
    """Whether answers are generated token by token; otherwise texts or words are classified."""

    def head_modules(self, model: "PreTrainedModel") -> list[str]:
        """Return the modules that the base has no weights for, so that they train fully.

        A language model's output layer is the base's own. A classifier's head is whatever stands
        beside the base model proper and has weights.
        """
        if self.generates:
            return []
        return [
            name
            for name, child in model.named_children()
            if name != model.base_model_prefix and next(child.parameters(), None) is not None
        ]


_TRAITS = {
    Task.CAUSAL_LM: TaskTraits(
        auto_class="AutoModelForCausalLM",
        peft_task_type="CAUSAL_LM",
        pipeline_tag="text-generation",
        row_formats=GENERATIVE,
        generates=True,
    ),
    Task.SEQ2SEQ: TaskTraits(
        auto_class="AutoModelForSeq2SeqLM",
        peft_task_type="SEQ_2_SEQ_LM",
        pipeline_tag="text2text-generation",
        row_formats=(RowFormat.MESSAGES, RowFormat.PROMPT_COMPLETION, RowFormat.INSTRUCTION),
        generates=True,
    ),
    Task.SEQUENCE_CLASSIFICATION: TaskTraits(
        auto_class="AutoModelForSequenceClassification",
        peft_task_type="SEQ_CLS",
        pipeline_tag="text-classification",
        row_formats=(RowFormat.LABELLED,),
        generates=False,
    ),
    Task.TOKEN_CLASSIFICATION: TaskTraits(
        auto_class="AutoModelForTokenClassification",
        peft_task_type="TOKEN_CLS",
        pipeline_tag="token-classification",
        row_formats=(RowFormat.TAGGED,),
        generates=False,
    ),
}


def traits_of(task: Task) -> TaskTraits:
    """Return what is fixed for a task."""
    return _TRAITS[task]
