"""A file of rows that was answered."""

from tasks.records.record import FileRecord, Record


class PredictionRecord(Record):
    """The answers of a batch inference: where they are, and how many there are."""

    output: FileRecord
    num_rows: int
    num_answered: int
    num_bad_rows: int
    num_rows_per_adapter: dict[str, int]
    first_errors: tuple[str, ...]
    seconds: float
    """Spent by this process, without loading the model."""
    rows_per_second: float
    """Of the rows that this process answered; 0 if an earlier attempt had answered all."""
    warnings: tuple[str, ...] = ()
