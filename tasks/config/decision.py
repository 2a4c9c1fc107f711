"""The decision's settings: what a challenger must achieve to become the champion."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from tasks.config.columns import ColumnNames
from tasks.config.section import Section

_MINUTES_PER_YEAR = 365 * 24 * 60
_MOST = 1e9
"""In any metric's unit."""


class OnTimeout(StrEnum):
    """What happens if nobody approves or rejects in time."""

    REJECT = "reject"
    PROMOTE = "promote"


class ApprovalSettings(Section):
    """Approval by a person before a promotion."""

    model_config = ConfigDict(title="Approval")

    timeout_minutes: float = Field(default=1440.0, gt=0, le=_MINUTES_PER_YEAR)
    """Minutes that the run waits in Prefect's UI for somebody to approve or reject; a year at
    most."""

    on_timeout: OnTimeout = OnTimeout.REJECT
    """What happens if nobody does in time: the champion stays (`reject`), or the challenger is
    promoted (`promote`)."""


def _check_guards(guards: dict[str, float]) -> dict[str, float]:
    for metric, tolerated in guards.items():
        if not 0 <= tolerated <= _MOST:
            raise ValueError(
                f"the guard {metric} tolerates {tolerated:g}; give how much worse the metric "
                f"may get, 0 to {_MOST:g}"
            )
    return guards


Guards = Annotated[dict[str, float], AfterValidator(_check_guards)]


class OlderRowsSettings(Section):
    """Rows of an earlier time, on which a challenger may not fall below the champion."""

    model_config = ConfigDict(title="Older rows")

    rows: str = Field(min_length=1)
    """A file of held-out rows with answers, as `evaluation.rows`, of what the champion knows."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in that file, as in `data.columns`."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The sha256 of that file; a file with any other content is refused."""

    guards: Guards = Field(min_length=1)
    """Metrics on these rows, each with how much worse than the champion's it may be, such as
    `{accuracy: 0.02}`."""


class DecisionSettings(Section):
    """When a challenger beats the champion, or the base as long as there is no champion."""

    model_config = ConfigDict(title="Decision")

    metric: str = Field(default="exact_match", min_length=1)
    """The metric that decides: `exact_match`, `token_f1`, `rouge_l`, `loss`, `perplexity`;
    `json_valid`, `field_accuracy` for JSON; `accuracy`, `macro_f1` for labels and tags, `entity_f1`
    for tags; or a name from `evaluation.metrics`."""

    margin: float = Field(default=0.0, ge=0, le=_MOST)
    """The minimum improvement over the champion, in the metric's unit."""

    min_rows: int = Field(default=100, ge=2, le=10**9)
    """The minimum number of held-out rows for a promotion; rows that repeat a question count
    once."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the two-sided confidence interval of the difference; all of it must be
    above zero."""

    bootstrap_samples: int = Field(default=2000, ge=100, le=1_000_000)
    """Number of bootstrap resamples of the held-out rows that the interval is computed from."""

    guards: Guards = Field(default_factory=dict)
    """Metrics that may not get worse, each with the deterioration that is tolerated, such as
    `{loss: 0.02}`. `TASK/METRIC` is a score of `evaluation.harness`, such as `lambada_openai/acc`;
    where the task's filter has a name, `gsm8k/exact_match/strict-match`."""

    older: OlderRowsSettings | None = None
    """A guard against forgetting: a fixed file of older rows that champion and challenger answer,
    too. Without a champion there is nothing to forget."""

    approval: ApprovalSettings | None = None
    """Ask a person for approval before a promotion; by default no approval is needed."""

    @property
    def row_guards(self) -> dict[str, float]:
        """The guards on metrics of the held-out rows."""
        return {name: tolerated for name, tolerated in self.guards.items() if "/" not in name}

    @property
    def harness_guards(self) -> dict[str, float]:
        """The guards on scores of the harness: no other metric has a slash in its name."""
        return {name: tolerated for name, tolerated in self.guards.items() if "/" in name}
