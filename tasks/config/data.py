"""The data's settings: where the rows are, how they are read, and how they are split."""

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.config.section import Section

_ENDING = re.compile(
    r"(\.(jsonl|ndjson|json|csv|tsv|parquet|txt|md))?(\.(gz|zst))?$", re.IGNORECASE
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 60
"""Of a source; what MLflow accepts within the key of a metric."""


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
    """How a row is rendered as one string."""

    AUTO = "auto"
    CHAT = "chat"
    PLAIN = "plain"


class LossOn(StrEnum):
    """Which tokens the loss is computed on."""

    COMPLETION = "completion"
    ALL = "all"


class OnLostAnswer(StrEnum):
    """What happens to a row whose answer lies beyond `max_length` entirely."""

    ERROR = "error"
    DROP = "drop"


class DataSource(Section):
    """One of several sources of training rows."""

    model_config = ConfigDict(title="Data source")

    path: str = Field(min_length=1)
    """A file, a folder written by `datasets`, or the id of a Hub dataset."""

    name: str | None = Field(default=None, pattern=rf"^[A-Za-z0-9_.-]{{1,{_LONGEST_NAME}}}$")
    """Its name in metrics and reports; by default that of the file, the folder or the dataset."""

    weight: float | None = Field(default=None, ge=0)
    """Share of the training rows relative to the other sources' weights. Rows are drawn by the
    seed, none of them twice, and as many as these proportions allow; of a source with the weight 0,
    nothing is read. Without weights, all rows of all sources are used."""

    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows of the source, drawn by the seed, before any are held out."""

    columns: dict[str, str] = Field(default_factory=dict)
    """The names of the source's columns, by the name that the format has for each: `{prompt:
    question, completion: answer}`."""

    format: RowFormat | None = None
    """The columns of the source's rows; by default `data.format`."""

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
    """Training rows: a JSONL, JSON, CSV, TSV or Parquet file, a folder written by `datasets`, or
    the id of a Hub dataset (`org/name`). Or a list of such sources, each a name or a mapping with
    the settings below, whose rows are mixed by the seed."""

    eval: str | None = Field(default=None, min_length=1)
    """Held-out rows, from the same kinds of sources; by default `eval_fraction` of the training
    rows."""

    train_split: str = Field(default="train", min_length=1)
    """The split of a `datasets` folder or Hub dataset to train on. Of several sources, each has its
    own `split`."""

    eval_split: str | None = Field(default=None, min_length=1)
    """The split of the same folder or Hub dataset to evaluate on, where it is the only source."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset. Of several sources, each has its own `revision`."""

    eval_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training rows to hold out, of each source alike, drawn by the seed, where no
    held-out rows are given."""

    format: RowFormat = RowFormat.AUTO
    """The columns of a row: `messages`; `prompt`, `completion`; `instruction`, `input`, `output`;
    `text`; or, for classification, `text`, `label` (`labelled`) and `tokens`, `tags` (`tagged`).
    `auto` infers it from the column names and the task."""

    template: Template = Template.AUTO
    """`chat` applies the tokenizer's chat template, `plain` concatenates prompt and completion
    verbatim; `auto` is `chat` where the tokenizer has a chat template and the rows are not plain
    `text`."""

    loss_on: LossOn = LossOn.COMPLETION
    """Tokens that the loss is computed on: `completion` is the answers only, `all` is every token.
    Rows of the format `text` are always trained on in full."""

    max_length: int = Field(default=1024, ge=8)
    """Maximum length of a row in tokens; longer rows are truncated at the end."""

    on_lost_answer: OnLostAnswer = OnLostAnswer.ERROR
    """What to do with a row whose answer is truncated away entirely: fail (`error`), or `drop` the
    row and report how many were dropped."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on this many rows only, drawn by the seed. Several sources keep their proportions."""

    @model_validator(mode="after")
    def _one_source_of_held_out_rows(self) -> Self:
        if self.eval and self.eval_split:
            raise ValueError(
                "eval and eval_split were both given; eval names another file, eval_split another "
                "split of train: keep one"
            )
        return self

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
            raise ValueError("train is a list of sources; write revision into the source it is of")
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
        """The sources of the training rows, without those of weight 0; a plain text is one."""
        if isinstance(self.train, str):
            split, revision = self.train_split, self.revision
            return (DataSource(path=self.train, split=split, revision=revision),)
        return tuple(one for one in self.train if one.weight != 0)


def _check_sources(sources: Sequence[DataSource]) -> None:
    if not sources:
        raise ValueError("the list is empty; name at least one source of training rows")
    weights = [one.weight for one in sources if one.weight is not None]
    if weights and len(weights) < len(sources):
        without = next(one.short_name for one in sources if one.weight is None)
        raise ValueError(
            f"some sources have a weight, but {without} has none; give each a weight, or none, "
            "which uses all rows; max_rows bounds them either way"
        )
    if weights and not any(weights):
        raise ValueError("all weights are 0, so there is nothing to train on; raise one above 0")
    name, count = Counter(one.short_name for one in sources).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} sources are named {name}, but losses and counts are reported by name; set "
            "name of each"
        )
