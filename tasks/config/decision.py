"""The decision's settings: what a challenger must show to become the champion."""

from enum import StrEnum

from pydantic import ConfigDict, Field, field_validator

from tasks.config.section import Section

_MINUTES_OF_A_YEAR = 365 * 24 * 60


class OnTimeout(StrEnum):
    """What an approval that nobody gave in time stands for."""

    REJECT = "reject"
    PROMOTE = "promote"


class ApprovalSettings(Section):
    """A person's consent before a promotion."""

    model_config = ConfigDict(title="Approval")

    timeout_minutes: float = Field(default=1440.0, gt=0, le=_MINUTES_OF_A_YEAR)
    """How long the run waits in Prefect's UI for somebody to approve or refuse; a year at most."""

    on_timeout: OnTimeout = OnTimeout.REJECT
    """What happens when nobody did: the champion stays, or the challenger is promoted."""


class DecisionSettings(Section):
    """When a challenger is better than the champion, or than the base while there is none."""

    model_config = ConfigDict(title="Decision")

    metric: str = Field(default="exact_match", min_length=1)
    """The metric that decides: `exact_match`, `token_f1`, `rouge_l`, `loss`, `perplexity`;
    `json_valid`, `field_accuracy` for JSON; `accuracy`, `macro_f1` for labels and tags, `entity_f1`
    for tags; or one of yours."""

    margin: float = Field(default=0.0, ge=0)
    """The least that the challenger must be better by, in the metric's unit."""

    min_rows: int = Field(default=100, ge=2)
    """Fewer held-out rows than these decide nothing; a question that is repeated is one row."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the two-sided interval of the difference, all of which must be above zero."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    """Redrawings of the held-out rows from which that interval comes."""

    guards: dict[str, float] = Field(default_factory=dict)
    """Metrics that may not get worse, each with the most that is tolerated, such as
    `{loss: 0.02}`."""

    approval: ApprovalSettings | None = None
    """Wait for a person's consent before a promotion; none is asked for unless set."""

    @field_validator("guards")
    @classmethod
    def _worse_is_not_negative(cls, guards: dict[str, float]) -> dict[str, float]:
        for metric, tolerated in guards.items():
            if tolerated < 0:
                raise ValueError(
                    f"the guard {metric} tolerates {tolerated:g}; it must be how much worse the "
                    "metric may get, 0 or more"
                )
        return guards
