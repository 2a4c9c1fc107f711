"""The result of a training."""

from tasks.records.data import DataRecord
from tasks.records.record import Record
from tasks.records.run import RunRecord
from tasks.records.saved import LoadedRecord, SavedRecord
from tasks.records.training import TrainedRecord


class ReportRecord(Record):
    """What the training flow returns: where everything is, and the numbers that matter."""

    run: RunRecord
    data: DataRecord
    trained: TrainedRecord
    saved: SavedRecord
    loaded: LoadedRecord
    model_uri: str | None
    """Of the adapter in MLflow; None while it waits to be shipped."""
