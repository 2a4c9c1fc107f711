"""The data's settings: where the rows are, how they are read, and how they are split."""

from enum import StrEnum
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.columns import ColumnNames
from tasks.config.section import Section

_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of `apply_chat_template`, which no variable of a chat template can have the name of."""


class RowFormat(StrEnum):
    """Which columns a row has, and how they are read."""

    AUTO = "auto"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    PROMPT_COMPLETION = "prompt-completion"
    CONVERSATIONAL = "conversational-prompt-completion"
    INSTRUCTION = "instruction"
    TEXT = "text"
    LABELLED = "labelled"
    TAGGED = "tagged"


ANSWERED = (
    RowFormat.MESSAGES,
    RowFormat.SHAREGPT,
    RowFormat.PROMPT_COMPLETION,
    RowFormat.CONVERSATIONAL,
    RowFormat.INSTRUCTION,
)
"""Formats of rows with answers that a model generates."""

GENERATIVE = (*ANSWERED, RowFormat.TEXT)
"""Formats of rows that a model answers or continues by generating text."""


class Template(StrEnum):
    """How a row is rendered as one string."""

    AUTO = "auto"
    CHAT = "chat"
    PLAIN = "plain"


class LossOn(StrEnum):
    """Which tokens the loss is computed on."""

    COMPLETION = "completion"
    ALL = "all"


class Turns(StrEnum):
    """Which of a conversation's answers are trained on."""

    ALL = "all"
    LAST = "last"


class OnLostAnswer(StrEnum):
    """What happens to a row of which no answer is left to train on."""

    ERROR = "error"
    DROP = "drop"


class DataSettings(Section):
    """The rows to train and to evaluate on."""

    model_config = ConfigDict(title="Data")

    train: str = Field(min_length=1)
    """Training rows: a JSONL, JSON, CSV, TSV, TXT or Parquet file, a folder of text files or one
    written by `datasets`, or the id of a Hub dataset (`org/name`)."""

    eval: str | None = Field(default=None, min_length=1)
    """Held-out rows, from the same kinds of sources; by default `eval_fraction` of the training
    rows."""

    train_split: str = Field(default="train", min_length=1)
    """The split of a `datasets` folder or Hub dataset to train on."""

    eval_split: str | None = Field(default=None, min_length=1)
    """The split of the same folder or Hub dataset to evaluate on."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""

    eval_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training rows to hold out, drawn by the seed, where no held-out rows are
    given."""

    format: RowFormat = RowFormat.AUTO
    """The format of the rows: `messages`; `sharegpt` (`conversations`); `prompt-completion`, of
    texts, or `conversational-prompt-completion`, of messages; `instruction` (`instruction`,
    `input`, `output`); `text`; or, for classification, `labelled` (`text`, `label`) and `tagged`
    (`tokens`, `tags`). `auto` infers it from the columns of the first row and the task."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in the file: a name from the format, and the one in the file,
    such as `{prompt: question, completion: answer}`."""

    template: Template = Template.AUTO
    """`chat` applies the tokenizer's chat template, `plain` concatenates prompt and completion
    verbatim; `auto` is `chat` where the tokenizer has a chat template and the rows are not plain
    `text`."""

    chat_template: str | None = Field(default=None, min_length=1)
    """A file with a chat template (Jinja) to use instead of the tokenizer's. Its content is
    recorded with the run, saved with the adapter, and used for every later answer."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`; in training and for every
    later answer."""

    system_in_user: bool = False
    """Put a system message at the beginning of the next user message, for a chat template that
    refuses system messages, such as Gemma's; in training and for every later answer."""

    loss_on: LossOn = LossOn.COMPLETION
    """Tokens that the loss is computed on: `completion` is the answers only, `all` is every token.
    Rows of the format `text` are always trained on in full."""

    turns: Turns = Turns.ALL
    """Answers of a conversation that are trained on: `all` (TRL's `assistant_only_loss`), or the
    `last` one. An answer whose `weight` is 0 is not trained on."""

    max_length: int = Field(default=1024, ge=8, le=10_000_000)
    """Maximum length of a row in tokens; longer rows are truncated at the end."""

    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR
    """What to do with a row of which no answer is trained on, as it is truncated away entirely or
    has the weight 0: fail (`error`), or `drop` the row and report how many were dropped."""

    max_train_rows: int | None = Field(default=None, ge=1, le=10**9)
    """Train on this many rows only, drawn by the seed."""

    @model_validator(mode="after")
    def _one_source_of_held_out_rows(self) -> Self:
        if self.eval and self.eval_split:
            raise ValueError(
                "eval and eval_split were both given; eval names another file, eval_split another "
                "split of train: keep one"
            )
        return self

    @model_validator(mode="after")
    def _some_answers_are_not_trained(self) -> Self:
        if self.turns is Turns.LAST and self.loss_on is LossOn.ALL:
            raise ValueError(
                "turns is last, but loss_on is all, which trains on every turn; keep one of the two"
            )
        return self

    @model_validator(mode="after")
    def _template_variables_are_free(self) -> Self:
        if taken := sorted(_ARGUMENTS & self.chat_template_kwargs.keys()):
            raise ValueError(
                f"chat_template_kwargs sets {', '.join(taken)}, which is no variable of a chat "
                "template but given by adapterflow; remove it"
            )
        return self

    @model_validator(mode="after")
    def _plain_rows_have_no_chat_template(self) -> Self:
        if self.template is Template.PLAIN and (unused := self.chat_settings):
            raise ValueError(
                f"template is plain, so {', '.join(unused)} would not take effect; remove "
                "template or them"
            )
        return self

    @property
    def chat_settings(self) -> list[str]:
        """The names of the settings given that take effect with a chat template only."""
        names = ("chat_template", "chat_template_kwargs", "system_in_user")
        return [name for name in names if getattr(self, name)]
