"""Variants of a training: what was planned, and what became of each."""

from typing import Any

from tasks.config import Score
from tasks.records.record import FileRecord, Record
from tasks.records.run import RunRecord

VARIANTS_FILE = "variants.json"
"""In the folder of a set of variants: its `VariantsRecord`, written last."""


class VariantRecord(Record):
    """A variant to train."""

    name: str
    settings: dict[str, Any]
    """What differs from the configuration of the set, by key path."""
    value: str | None = None
    """Of the column, where the set is split by one."""


class PlanRecord(Record):
    """The variants of a set, as far as they are known before any is trained."""

    variants: tuple[VariantRecord, ...]
    """None of a search, whose variants depend on scores."""
    num_variants: int
    """Of a search, the number of its trials."""
    num_rows: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    """Training rows by variant, those to hold out included, where the set is split by a column."""
    left_out: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    """Values that get no adapter, with their number of rows; the empty one is of rows without."""


class VariantResult(Record):
    """What became of a variant."""

    name: str
    settings: dict[str, Any]
    value: str | None
    flow_run_id: str
    mlflow_run_id: str | None = None
    error: str | None = None
    """Why there is no adapter; None if there is one."""
    adapter: str | None = None
    """The adapter's folder, relative to that of the set."""
    weights: FileRecord | None = None
    model_uri: str | None = None
    """Of the adapter in MLflow; None while it waits to be shipped."""
    score: float | None = None
    """By the metric that variants are compared by."""
    train_loss: float | None = None
    eval_loss: float | None = None
    num_rows: int = 0
    num_tokens: int = 0
    """Over all epochs."""
    seconds_training: float = 0.0

    @property
    def megabytes(self) -> float:
        """The size of the adapter's weights."""
        return self.weights.size_bytes / 1e6 if self.weights else 0.0


class VariantsRecord(Record):
    """What the flow of many variants returns: its manifest, in the folder of the set."""

    run: RunRecord
    base: str
    """As adapters name it: a Hub id or a folder."""
    column: str | None
    """That the set is split by, and rows are routed by."""
    metric: Score
    best: str | None
    """The variant with the best score; None where they are scored on different rows."""
    registered: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    """Versions in MLflow's registry, by the registered model's name."""
    variants: tuple[VariantResult, ...]

    @property
    def failed(self) -> tuple[VariantResult, ...]:
        """The variants that have no adapter."""
        return tuple(one for one in self.variants if one.error is not None)
