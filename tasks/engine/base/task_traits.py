"""What a task needs: the base's Auto class and head, upstream's names for it, formats of rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import JUDGED, PREFERENCES, LearningObjective, RowFormat, Task
from tasks.config.data import ANSWERED, GENERATIVE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskTraits:
    """What is fixed for a task, independently of the model and the data."""

    auto_class: str
    """The transformers class that loads a model for the task."""
    peft_task_type: str
    pipeline_tag: str
    """The task's name on the Hub."""
    row_formats: tuple[RowFormat, ...]
    """Formats of rows that the task can learn from."""
    generates: bool
    """Whether answers are generated token by token; otherwise texts or words are classified."""

    def head_modules(self, model: "PreTrainedModel") -> list[str]:
        """Return the modules that the task adds to the base, which therefore train fully.

        A language model's output layer is part of the base. A classifier's head is any module with
        weights beside the base model proper.
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
        row_formats=ANSWERED,
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
    """Return the traits of a task."""
    return _TRAITS[task]


def learnable_formats(
    task: Task, objective: LearningObjective = LearningObjective.SFT
) -> tuple[RowFormat, ...]:
    """Return the formats of rows that an objective learns from, for a task."""
    if objective is LearningObjective.KTO:
        return JUDGED
    return PREFERENCES if objective.learns_pairs else traits_of(task).row_formats
