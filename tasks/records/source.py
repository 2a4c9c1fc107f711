"""The adapter that a training begins with, instead of a fresh one."""

from pathlib import Path

from tasks.records.record import FileRecord, Record


class LearnedRows(Record):
    """The rows that an adapter learned from, as far as is recorded with it."""

    sha256: str
    """Of all training rows in order, as in `SplitRecord`."""
    num_rows: int | None = None


class SourceRecord(Record):
    """An adapter to begin with, found, and pinned by its files."""

    given: str
    """As it was configured; an alias or a branch may mean another adapter later."""
    reference: str
    """What it was when it was found: a version in MLflow, a commit on the Hub, or a folder."""
    weights: FileRecord
    config: FileRecord
    learned: LearnedRows | None = None
    """What it was trained on; None if nothing says so."""
    mlflow_run_id: str | None = None
    """The run that trained it; None if it is not from MLflow."""

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.weights.path.parent

    @property
    def public_reference(self) -> str | None:
        """The reference for files that leave this machine; None for a folder."""
        return None if Path(self.reference).is_absolute() else self.reference

    @property
    def text(self) -> str:
        """Describe it in one line: what it is, its sha256, and what it was trained on."""
        parts = [f"sha256 {self.weights.sha256[:12]}"]
        if self.learned:
            rows = "rows" if self.learned.num_rows is None else f"{self.learned.num_rows:,} rows"
            parts.append(f"trained on {rows} with sha256 {self.learned.sha256[:12]}")
        return f"{self.reference} ({', '.join(parts)})"
