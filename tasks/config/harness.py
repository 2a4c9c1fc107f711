"""The settings of lm-evaluation-harness, whose tasks measure what a model can do beside its own."""

from pydantic import ConfigDict, Field, field_validator

from tasks.config.section import Section


class HarnessSettings(Section):
    """Tasks of lm-evaluation-harness on which base, champion and challenger are scored, too."""

    model_config = ConfigDict(title="lm-evaluation-harness")

    tasks: list[str] = Field(min_length=1, max_length=1000)
    """Names of tasks, groups or tags, as of `lm_eval --tasks`. Each score can be a guard in
    `decision.guards`, as `TASK/METRIC`."""

    include_path: str | None = Field(default=None, min_length=1)
    """A folder with YAML files of your own tasks."""

    limit: int | None = Field(default=None, ge=1, le=10**9)
    """Maximum number of rows of each task, its first ones; by default all."""

    num_fewshot: int | None = Field(default=None, ge=0, le=1000)
    """Number of examples in each prompt, except where a task sets 0; by default the task's."""

    batch_size: int = Field(default=4, ge=1, le=1_000_000)
    """Prompts per batch, for all models. The logits of a batch are in memory at once, as float32:
    rows times tokens times vocabulary."""

    apply_chat_template: bool = False
    """Write each prompt as a message with the chat template, as for a model that chats."""

    @field_validator("tasks")
    @classmethod
    def _named_once(cls, tasks: list[str]) -> list[str]:
        if blank := [name for name in tasks if not name.strip()]:
            raise ValueError(f"{blank[0]!r} is no task's name")
        if twice := [name for name in tasks if tasks.count(name) > 1]:
            raise ValueError(f"the task {twice[0]!r} is named twice; remove one")
        return tasks
