"""The data's settings: where the rows are, how they read, and how they are split."""

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.section import Section


class RowFormat(StrEnum):
    """Which columns a row has."""

    AUTO = "auto"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt-completion"
    INSTRUCTION = "instruction"
    TEXT = "text"
    LABELLED = "labelled"
    TAGGED = "tagged"


class Template(StrEnum):
    """How a row becomes one string."""

    AUTO = "auto"
    CHAT = "chat"
    PLAIN = "plain"


class LossOn(StrEnum):
    """Which tokens are trained on."""

    COMPLETION = "completion"
    ALL = "all"


class OnLostAnswer(StrEnum):
    """What happens to a row of whose answer nothing is left within `max_length`."""

    ERROR = "error"
    DROP = "drop"


class DataSettings(Section):
    """The examples to train and to evaluate on."""

    model_config = ConfigDict(title="Data")

    train: str = Field(min_length=1)
    """A JSONL, JSON, CSV, TSV or Parquet file, a folder written by `datasets`, or a Hub dataset
    id."""

    eval: str | None = Field(default=None, min_length=1)
    """Held-out rows of the same kinds; without it, `eval_fraction` of the training rows."""

    train_split: str = Field(default="train", min_length=1)
    """Which split of a `datasets` folder or Hub dataset to train on."""

    eval_split: str | None = Field(default=None, min_length=1)
    """Which split of the same folder or Hub dataset to evaluate on."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""

    eval_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training rows held out by the seed where no held-out rows are given."""

    format: RowFormat = RowFormat.AUTO
    """The columns: `messages`, `prompt`/`completion`, `instruction`/`input`/`output`, `text`,
    or, to classify, `text`/`label` and (words) `tokens`/`tags`; `auto` tells by their names and
    the task."""

    template: Template = Template.AUTO
    """`chat` applies the tokenizer's chat template, `plain` joins prompt and completion as they
    are; `auto` is `chat` where the tokenizer has a template and the row is no plain `text`."""

    loss_on: LossOn = LossOn.COMPLETION
    """`completion` trains on the answers only; a `text` row is trained on whole."""

    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens; longer ones are cut at the end."""

    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR
    """What to do with a row whose whole answer is cut away: stop, or drop and count it."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on this many of the rows only, chosen by the seed."""

    @model_validator(mode="after")
    def _one_source_of_held_out_rows(self) -> Self:
        if self.eval and self.eval_split:
            raise ValueError(
                "eval and eval_split were both given; eval names another file, eval_split another "
                "split of train: keep one"
            )
        return self
