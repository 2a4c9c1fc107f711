"""What passes between the steps of a retraining, beside the six: scores, decision, versions."""

from enum import StrEnum

from tasks.config import AnswerKind
from tasks.records.harness import HarnessRecord
from tasks.records.record import FileRecord, Record
from tasks.records.report import ReportRecord
from tasks.records.run import RunRecord
from tasks.records.serving import PublishedRecord
from tasks.records.source import SourceRecord

BASE, CHAMPION, CHALLENGER = "base", "champion", "challenger"


class VersionRecord(Record):
    """A version of the registered model."""

    name: str
    version: int
    created_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    run_id: str | None
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """The version's address in MLflow."""
        return f"models:/{self.name}/{self.version}"


class CheckedRecord(Record):
    """What a retraining starts from, found before anything is trained."""

    held_out: FileRecord
    num_rows: int
    answers: AnswerKind
    """The kind of the expected answers; never `auto`."""
    leaked_rows: tuple[int, ...]
    """Held-out rows that occur in the training data verbatim."""
    similar_rows: tuple[int, ...]
    """Held-out rows whose question occurs there ignoring case, punctuation and whitespace."""
    base_fingerprint: str
    configuration_sha256: str
    champion: VersionRecord | None
    unchanged_since: int | None
    """The last version made from the same base, data and configuration; None if there is none."""
    older: FileRecord | None = None
    """The older rows of the guard against forgetting."""
    source: SourceRecord | None = None
    """The adapter that the challenger begins with; None for a fresh one."""


class ChampionRecord(Record):
    """The champion that a retraining begins with."""

    champion: VersionRecord | None
    """None where there is none yet: the training begins with a fresh adapter."""


class ScoredModel(Record):
    """One model's scores on all held-out rows."""

    name: str
    """`base`, `champion` or `challenger`."""
    source: str
    weights_sha256: str
    scores: dict[str, float]
    rows_per_second: float
    """Without the time for loading."""


class EvaluatedRecord(Record):
    """Base, champion and challenger on the same rows; `rows` has the answers to each row."""

    rows: FileRecord
    num_rows: int
    answers: AnswerKind
    models: tuple[ScoredModel, ...]
    warnings: tuple[str, ...] = ()
    """Warnings: what may make the comparison unfair, or could not be checked."""
    older: "EvaluatedRecord | None" = None
    """Champion and challenger on the older rows, for the guard against forgetting."""
    harness: HarnessRecord | None = None
    """All models on tasks of lm-evaluation-harness."""

    def model(self, name: str) -> ScoredModel | None:
        """Return one of the models; None where there is no champion."""
        return next((one for one in self.models if one.name == name), None)

    @property
    def incumbent(self) -> str:
        """The model to beat: the champion, or the base while there is none."""
        return CHAMPION if self.model(CHAMPION) else BASE


class Outcome(StrEnum):
    """What a retraining ends with."""

    PROMOTE = "promote"
    REJECT = "reject"
    REFUSE = "refuse"
    """There are too few rows to decide."""
    OUTDATED = "outdated"
    """Compared with a champion that was replaced before the challenger could be promoted."""
    UNANSWERED = "unanswered"
    """Better, but nobody approved or rejected it in time."""
    SKIP = "skip"
    """The inputs are unchanged, so nothing was trained."""


UNDECIDED = (Outcome.OUTDATED, Outcome.UNANSWERED)
"""Outcomes without a verdict on the version: one made from the same inputs may be promoted."""


class GuardRecord(Record):
    """A metric that may get worse by no more than `tolerated`."""

    metric: str
    is_on_older_rows: bool = False
    """Whether it guards against forgetting; otherwise it is of the rows that decide."""
    incumbent: float
    challenger: float
    tolerated: float
    holds: bool

    @property
    def where(self) -> str:
        """The words behind the metric's name."""
        return " on the older rows" if self.is_on_older_rows else ""


class DecisionRecord(Record):
    """What was decided, and why, in one sentence."""

    outcome: Outcome
    reason: str
    """What came of it so far: `better: …` is a proposal, `promoted: …` is done."""
    compared: str = ""
    """The scores side by side in words, whatever came of them; empty if none were compared."""
    approval: str = ""
    """What the person said who was asked; empty if nobody was."""
    metric: str
    num_rows: int
    incumbent: float | None = None
    challenger: float | None = None
    difference: float | None = None
    """Above 0 where the challenger is better, also for metrics of which less is better."""
    interval: tuple[float, float] | None = None
    """Confidence interval of the difference, at the configured level."""
    guards: tuple[GuardRecord, ...] = ()


class RetrainedRecord(Record):
    """What the retraining flow returns."""

    checked: CheckedRecord
    decision: DecisionRecord
    """The final decision, after a person's approval and a promotion that may be outdated."""
    run: RunRecord | None = None
    report: ReportRecord | None = None
    evaluated: EvaluatedRecord | None = None
    version: VersionRecord | None = None
    """The challenger as registered."""
    published: PublishedRecord | None = None
    """What came of publishing it; None if there is no server, or it could not be reached."""
