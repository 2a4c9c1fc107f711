"""The comparison's settings: which held-out rows, and what is measured on them."""

import re
from enum import StrEnum
from typing import Any

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from tasks.config.columns import ColumnNames
from tasks.config.harness import HarnessSettings
from tasks.config.section import Section

_METRIC_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
"""What MLflow accepts within the key of a metric and of a tag."""


class AnswerKind(StrEnum):
    """The kind of the expected answers, which determines the metrics."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    LABELS = "labels"
    TAGS = "tags"

    @property
    def are_classes(self) -> bool:
        """Whether an answer is one class or several."""
        return self in (AnswerKind.LABELS, AnswerKind.TAGS)


class OnLeakage(StrEnum):
    """What happens if a held-out row is also in the training data."""

    ERROR = "error"
    REPORT = "report"


class EvaluationSettings(Section):
    """The held-out rows on which base, champion and challenger are scored, all in the same way."""

    model_config = ConfigDict(title="Evaluation")

    rows: str = Field(min_length=1)
    """A file of held-out rows with answers, as for `data.train`. It must not be `data.eval`, by
    which the training selects its checkpoint."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in that file, as in `data.columns`."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The sha256 of that file (`sha256sum FILE`); a file with any other content is refused."""

    answers: AnswerKind = AnswerKind.AUTO
    """The kind of the expected answers. `json` adds validity and field accuracy, `labels` accuracy
    and macro-F1. `auto` is `json` if all answers are JSON objects or lists, `labels` if they are
    short and there are at least twice as many rows as distinct answers, otherwise `text`. The
    classification tasks ignore this setting: the answers are `labels`, or for words `tags`
    (accuracy and macro-F1 of words, F1 of entities)."""

    max_new_tokens: int = Field(default=128, ge=1, le=10_000_000)
    """Maximum length of an answer in tokens, for all models."""

    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Prompts answered per batch, for all models; up to four times as many where that takes little
    memory, unless it is 1."""

    on_leakage: OnLeakage = OnLeakage.ERROR
    """What to do if held-out rows are in the training data: fail (`error`), or warn and continue
    (`report`)."""

    metrics: dict[str, str] = Field(default_factory=dict)
    """Custom metrics: a name, and the function (`package.module:function`). It is called with an
    answer and the expected answer, and returns a number; higher is better."""

    harness: HarnessSettings | None = None
    """Tasks of lm-evaluation-harness on which all models are scored, too; none by default."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the harness where there is none, so that earlier runs' records stay valid."""
        written: dict[str, Any] = handler(self)
        if self.harness is None:
            written.pop("harness", None)
        return written

    @field_validator("metrics")
    @classmethod
    def _names_can_be_recorded(cls, metrics: dict[str, str]) -> dict[str, str]:
        if bad := [name for name in metrics if not _METRIC_NAME.fullmatch(name)]:
            raise ValueError(
                f"MLflow can't store a metric named {bad[0]!r}; choose a name of up to 60 letters "
                "(a to z), digits, _, - and ."
            )
        return metrics
