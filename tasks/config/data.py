"""The data's settings: where the rows are, how they are read, and how they are split."""

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.config.columns import ColumnNames, value_text
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
"""Arguments of `apply_chat_template`: a template's variables can't have these names."""
_ENDING = re.compile(
    r"(\.(jsonl|ndjson|json|csv|tsv|parquet|txt|md))?(\.(gz|zst))?$", re.IGNORECASE
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 60
"""Characters of a source's name, which is a part of a metric's key in MLflow."""


class RowFormat(StrEnum):
    """Which columns a row has, and how they are read."""

    AUTO = "auto"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    PROMPT_COMPLETION = "prompt-completion"
    CONVERSATIONAL = "conversational-prompt-completion"
    INSTRUCTION = "instruction"
    PREFERENCE = "preference"
    CONVERSATIONAL_PREFERENCE = "conversational-preference"
    UNPAIRED = "unpaired-preference"
    CONVERSATIONAL_UNPAIRED = "conversational-unpaired-preference"
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


PREFERENCES = (RowFormat.PREFERENCE, RowFormat.CONVERSATIONAL_PREFERENCE)
"""Formats of rows with a chosen and a rejected answer."""

JUDGED = (RowFormat.UNPAIRED, RowFormat.CONVERSATIONAL_UNPAIRED)
"""Formats of rows with an answer and whether it is desirable."""


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
    """What happens to a row without an answer to train on."""

    ERROR = "error"
    DROP = "drop"


class DataSource(Section):
    """One of several sources of training rows."""

    model_config = ConfigDict(title="Data source")

    path: str = Field(min_length=1)
    """A file, a folder of text files or one written by `datasets`, or the id of a Hub dataset."""

    name: str | None = Field(default=None, pattern=rf"^[A-Za-z0-9_.-]{{1,{_LONGEST_NAME}}}$")
    """Its name in metrics and reports; by default made from the path."""

    weight: float | None = Field(default=None, ge=0, le=1e9)
    """Share of the training rows, relative to the weights of the other sources. As many rows are
    drawn by the seed as these proportions allow without repeating one; a source with the weight 0
    is not read. Without weights, all rows of all sources are used."""

    max_rows: int | None = Field(default=None, ge=1, le=10**9)
    """Use at most this many rows of the source, drawn by the seed before any are held out."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in the source; by default `data.columns`."""

    format: RowFormat | None = None
    """The format of the source's rows; by default `data.format`."""

    split: str = Field(default="train", min_length=1)
    """The split of a `datasets` folder or Hub dataset."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""

    @property
    def short_name(self) -> str:
        """The name, or else one made from the path."""
        stem = _ENDING.sub("", PurePath(self.path).name, count=1)
        return self.name or _NOT_IN_NAMES.sub("-", stem).strip("-.")[:_LONGEST_NAME] or "source"


class DataSettings(Section):
    """The rows to train and to evaluate on."""

    model_config = ConfigDict(title="Data")

    train: Annotated[str, Field(min_length=1)] | list[DataSource]
    """Training rows: a JSONL, JSON, CSV, TSV, TXT or Parquet file, a folder of text files or one
    written by `datasets`, or the id of a Hub dataset (`org/name`). Or a list of such sources, each
    a path or a mapping, whose rows are mixed by the seed."""

    eval: str | None = Field(default=None, min_length=1)
    """Held-out rows, from the same kinds of sources; by default `eval_fraction` of the training
    rows."""

    eval_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each source's rows to hold out, drawn by the seed, if neither `eval` nor
    `eval_split` is given."""

    format: RowFormat = RowFormat.AUTO
    """The format of the rows: `messages`; `sharegpt` (`conversations`); `prompt-completion`, of
    texts, or `conversational-prompt-completion`, of messages; `instruction` (`instruction`,
    `input`, `output`); `text`; `preference`, of texts, or `conversational-preference`, of messages
    (`prompt`, `chosen`, `rejected`), for `training.objective: dpo`, `orpo` and `simpo`;
    `unpaired-preference`, of texts, or `conversational-unpaired-preference`, of messages (`prompt`,
    `completion`, `label`), for `kto`; or, for classification, `labelled` (`text`, `label`) and
    `tagged` (`tokens`, `tags`). `auto` infers it from the columns of the first row, the task and
    the objective."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in the file, the format's name first:
    `{prompt: question, completion: answer}`."""

    where: dict[str, str] = Field(default_factory=dict)
    """Only the rows with these values, by the file's column: `{tenant: acme}`. All other rows, also
    of `eval`, are not of this training. Numbers and truth values are compared as text."""

    max_length: int = Field(default=1024, ge=8, le=10_000_000)
    """Maximum length of a row in tokens; longer rows are truncated at the end."""

    train_split: str = Field(default="train", min_length=1)
    """The split of a `datasets` folder or Hub dataset to train on. In a list of sources, each has a
    `split` of its own."""

    eval_split: str | None = Field(default=None, min_length=1)
    """The split of the same folder or Hub dataset to evaluate on; not for a list of sources."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset. In a list of sources, each has a `revision` of its
    own."""

    template: Template = Template.AUTO
    """`chat` applies the tokenizer's chat template, `plain` concatenates prompt and completion
    verbatim; `auto` is `chat` where the tokenizer has a chat template and the rows are not plain
    `text`."""

    chat_template: str | None = Field(default=None, min_length=1)
    """A file with a chat template (Jinja) to use instead of the tokenizer's. Its text is recorded
    with the run, saved with the adapter, and used for every later answer."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Values of variables that the chat template reads, such as `enable_thinking: false`, in
    training and for every later answer."""

    system_in_user: bool = False
    """Put a system message at the beginning of the next user message, for a chat template that
    refuses system messages, such as Gemma's, in training and for every later answer."""

    loss_on: LossOn = LossOn.COMPLETION
    """Tokens that the loss is computed on: `completion` is the answers only, `all` is every token.
    Rows of the format `text` are always trained on in full."""

    turns: Turns = Turns.ALL
    """Which answers of a conversation are trained on: `all` (TRL's `assistant_only_loss`), or the
    `last` one. An answer with the `weight` 0 never is."""

    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR
    """What to do with a row without an answer to train on, because all are truncated away or have
    the weight 0, and with a pair whose answers are equal, also as truncated, or one of which is
    empty: fail (`error`), or `drop` the row and report how many were dropped."""

    max_train_rows: int | None = Field(default=None, ge=1, le=10**9)
    """Train on this many rows only, drawn by the seed. Several sources keep their proportions."""

    replay: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows that the adapter of `lora.from`, or the champion that is continued, learned
    from, to be mixed into the training rows, beside `max_train_rows`; drawn by the seed. If it
    replayed rows itself, all that its predecessor learned from count as well. Its run in MLflow
    records where they are; they have to be as they were."""

    @field_validator("where", mode="before")
    @classmethod
    def _accept_numbers(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(given, dict):
            return given
        return {key: value_text(value) or value for key, value in given.items()}

    @field_validator("where")
    @classmethod
    def _where_has_values(cls, where: dict[str, str]) -> dict[str, str]:
        for column, value in where.items():
            if not value:
                raise ValueError(f"{column!r} has no value; give the one that the rows have")
        return where

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
                f"chat_template_kwargs sets {', '.join(taken)}, which adapterflow itself passes to "
                "the chat template; remove it"
            )
        return self

    @model_validator(mode="after")
    def _plain_rows_have_no_chat_template(self) -> Self:
        if self.template is Template.PLAIN and (unused := self.chat_settings):
            raise ValueError(
                f"template is plain, so {', '.join(unused)} would not take effect; remove "
                "template, or what it excludes"
            )
        return self

    @property
    def chat_settings(self) -> list[str]:
        """The names of the settings given that take effect with a chat template only."""
        names = ("chat_template", "chat_template_kwargs", "system_in_user")
        return [name for name in names if getattr(self, name)]

    @model_validator(mode="after")
    def _several_sources_have_their_own_splits(self) -> Self:
        if isinstance(self.train, str):
            return self
        if self.eval_split:
            raise ValueError(
                "eval_split is another split of train, which is a list of sources here; use eval, "
                "or eval_fraction to hold out rows of each source"
            )
        if self.train_split != "train":
            raise ValueError("train is a list of sources; write train_split as split of a source")
        if self.revision and not self.eval:
            raise ValueError(
                "train is a list of sources; write revision into the source that has it"
            )
        return self

    @field_validator("train", mode="before")
    @classmethod
    def _accept_plain_paths(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(given, list):
            return given
        return [{"path": one} if isinstance(one, str) else one for one in given]

    @field_validator("train")
    @classmethod
    def _sources_fit_together(cls, train: str | list[DataSource]) -> str | list[DataSource]:
        if not isinstance(train, str):
            _check_sources(train)
        return train

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """The sources of the training rows, without those of weight 0."""
        if isinstance(self.train, str):
            split, revision = self.train_split, self.revision
            return (
                DataSource(path=self.train, split=split, revision=revision, columns=self.columns),
            )
        return tuple(
            one if one.columns else one.model_copy(update={"columns": self.columns})
            for one in self.train
            if one.weight != 0
        )


def _check_sources(sources: Sequence[DataSource]) -> None:
    if not sources:
        raise ValueError("the list is empty; name at least one source of training rows")
    weights = [one.weight for one in sources if one.weight is not None]
    if weights and len(weights) < len(sources):
        without = next(one.short_name for one in sources if one.weight is None)
        raise ValueError(
            f"some sources have a weight, but {without} has none; give every source a weight, or "
            "none to use all rows; max_rows bounds them either way"
        )
    if weights and not any(weights):
        raise ValueError("all weights are 0, so there is nothing to train on; raise one above 0")
    name, count = Counter(one.short_name for one in sources).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} sources are named {name}, but losses and counts are reported by name; give "
            "each a name of its own"
        )
