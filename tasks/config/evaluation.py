"""The comparison's settings: which held-out rows, and what is measured on them."""

import re
from enum import StrEnum

from pydantic import ConfigDict, Field, field_validator

from tasks.config.section import Section

_METRIC_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
"""What MLflow takes for a part of a metric's and of a tag's key."""


class AnswerKind(StrEnum):
    """What the expected answers are, which decides the metrics."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    LABELS = "labels"
    TAGS = "tags"

    @property
    def are_classes(self) -> bool:
        """Tell whether an answer is a class, or several."""
        return self in (AnswerKind.LABELS, AnswerKind.TAGS)


class OnLeakage(StrEnum):
    """What happens where a held-out row is in the training data, too."""

    ERROR = "error"
    REPORT = "report"


class EvaluationSettings(Section):
    """Rows on which base, champion and challenger are all scored anew, in the same way."""

    model_config = ConfigDict(title="Evaluation")

    rows: str = Field(min_length=1)
    """A JSONL, JSON, CSV or Parquet file of rows with answers, never trained on. Not `data.eval`,
    by which the training picks its checkpoint."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The sha256 of that file (`sha256sum FILE`): other rows are refused, not compared."""

    answers: AnswerKind = AnswerKind.AUTO
    """What the expected answers are. `json` adds validity and field accuracy, `labels` accuracy and
    macro-F1; `auto` is `json` where all are JSON objects or lists, `labels` where they are short
    and there are at least twice as many rows as different ones, else `text`. A classifier's are
    `labels`, a tagger's `tags` (accuracy and macro-F1 of words, F1 of entities), whatever is
    set."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens, for all models alike."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once, for all models alike."""

    on_leakage: OnLeakage = OnLeakage.ERROR
    """What to do where held-out rows are in the training data: stop, or report and go on."""

    metrics: dict[str, str] = Field(default_factory=dict)
    """Metrics of your own: a name, and where its function is (`package.module:function`). It is
    called with an answer and the expected one, and gives a number, of which more is better."""

    @field_validator("metrics")
    @classmethod
    def _names_can_be_recorded(cls, metrics: dict[str, str]) -> dict[str, str]:
        if bad := [name for name in metrics if not _METRIC_NAME.fullmatch(name)]:
            raise ValueError(
                f"MLflow can't keep a metric of the name {bad[0]!r}; choose one of up to 60 "
                "letters (a to z), digits, _, - and ."
            )
        return metrics
