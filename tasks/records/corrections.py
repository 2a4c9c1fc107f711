"""The record of corrections: what judged answers became."""

from tasks.records.record import FileRecord, Record


class CorrectionsRecord(Record):
    """The rows of preferences: where they are, and what was counted of the answers."""

    output: FileRecord
    num_written: int
    """Rows in the output."""
    num_rows: int
    """Rows in the input: the sum of the following numbers."""
    num_corrected: int
    num_accepted: int
    num_rejected: int
    """Rejected without a correction."""
    num_unchanged: int
    """The correction is the answer, except for whitespace at its ends."""
    num_unjudged: int
    """Answered, without a verdict and without a correction."""
    num_unanswered: int
    num_rows_per_version: dict[str, int]
    """Judged rows by the version of the adapter that answered; an empty name where it is not
    recorded."""
