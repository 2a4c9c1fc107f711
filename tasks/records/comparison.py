"""What passes between the steps of a retraining, after the six: scores, decision, versions."""

from enum import StrEnum

from tasks.config import AnswerKind
from tasks.records.steps import FileRecord, Record, ReportRecord, RunRecord

BASE, CHAMPION, CHALLENGER = "base", "champion", "challenger"


class VersionRecord(Record):
    """A version of the registered model."""

    name: str
    version: int
    created_ms: int
    """Milliseconds since 1970."""
    run_id: str | None
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Where MLflow has it."""
        return f"models:/{self.name}/{self.version}"


class CheckedRecord(Record):
    """What a retraining starts from, before anything is trained."""

    held_out: FileRecord
    num_rows: int
    answers: AnswerKind
    """What the expected answers are."""
    leaked_rows: tuple[int, ...]
    """Held-out rows that are training rows, word for word."""
    similar_rows: tuple[int, ...]
    """Held-out rows whose question is a training row's, but for case, marks and white space."""
    base_fingerprint: str
    configuration_sha256: str
    champion: VersionRecord | None
    unchanged_since: int | None
    """The version that was made of the same base, data and configuration."""


class ScoredModel(Record):
    """One model's scores on all held-out rows."""

    name: str
    """`base`, `champion` or `challenger`."""
    source: str
    weights_sha256: str
    scores: dict[str, float]
    rows_per_second: float
    """Of answering, without loading."""


class EvaluatedRecord(Record):
    """Base, champion and challenger on the same rows; each row's answers are in the file."""

    rows: FileRecord
    num_rows: int
    answers: AnswerKind
    models: tuple[ScoredModel, ...]
    remarks: tuple[str, ...] = ()
    """What may make the comparison unfair, or could not be checked."""

    def model(self, name: str) -> ScoredModel | None:
        """Give one of the models; there may be no champion."""
        return next((one for one in self.models if one.name == name), None)

    @property
    def incumbent(self) -> str:
        """Name who has to be beaten: the champion, or the base while there is none."""
        return CHAMPION if self.model(CHAMPION) else BASE


class Outcome(StrEnum):
    """What becomes of a challenger."""

    PROMOTE = "promote"
    REJECT = "reject"
    REFUSE = "refuse"
    """Too few rows to tell."""
    OUTDATED = "outdated"
    """Compared with a champion that was replaced before the challenger could be promoted."""
    UNANSWERED = "unanswered"
    """Better, but nobody said in time whether it is to be promoted."""
    SKIP = "skip"
    """Nothing changed, nothing was trained."""


class GuardRecord(Record):
    """A metric that may not get worse."""

    metric: str
    incumbent: float
    challenger: float
    tolerated: float
    holds: bool


class DecisionRecord(Record):
    """What was decided, and the one sentence that says why."""

    outcome: Outcome
    reason: str
    metric: str
    num_rows: int
    incumbent: float | None = None
    challenger: float | None = None
    difference: float | None = None
    """More is better for the challenger, whatever the metric."""
    interval: tuple[float, float] | None = None
    """Of the difference, at the configured confidence."""
    guards: tuple[GuardRecord, ...] = ()


class RetrainedRecord(Record):
    """What a retraining hands back."""

    checked: CheckedRecord
    decision: DecisionRecord
    """As it ended: with what a person said, or what happened meanwhile."""
    run: RunRecord | None = None
    report: ReportRecord | None = None
    evaluated: EvaluatedRecord | None = None
    version: VersionRecord | None = None
    """The challenger, as it was registered."""
