"""What the processes of a training are given, and what they leave: files in one folder."""

from pathlib import Path

from tasks.config import TrainingSettings
from tasks.records import DataRecord, InjectedRecord, Record, TrainedRecord


class Work(Record):
    """The input of step 4, for each process of the group."""

    injected: InjectedRecord
    data: DataRecord
    settings: TrainingSettings
    checkpoints: Path
    max_eval_rows: int | None
    size: int
    """The number of processes."""
    parent: int
    """The process that started them, without which they end."""
    meeting_point: Path
    """The file by which they find each other, on a local disk."""


class Outcome(Record):
    """How a training ended in all processes, as the first one says."""

    trained: TrainedRecord | None = None
    """None if it stopped as it was asked to."""
    stopped: str = ""
    peak_memory_bytes: tuple[int, ...] = ()
    peak_gpu_bytes: tuple[int, ...] = ()
    """Of each process."""


class Failure(Record):
    """The error that ended a process."""

    kind: str
    """The error's class."""
    message: str


class WorkFolder:
    """The names of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def work(self) -> Path:
        """The `Work`."""
        return self.folder / "work.json"

    @property
    def reports(self) -> Path:
        """What the first process reports, a line each; it stays until the training is done."""
        return self.folder / "reports.jsonl"

    @property
    def stop(self) -> Path:
        """A file that is there once the training is to stop."""
        return self.folder / "stop"

    @property
    def outcome(self) -> Path:
        """The `Outcome`."""
        return self.folder / "outcome.json"

    def failure(self, rank: int) -> Path:
        """Return the file of a process's `Failure`."""
        return self.folder / f"failure-{rank}.json"

    def log(self, rank: int) -> Path:
        """Return the file that has what a process prints."""
        return self.folder / f"process-{rank}.log"

    def clear(self) -> None:
        """Remove what an earlier attempt left, except its reports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.iterdir():
            if file != self.reports:
                file.unlink(missing_ok=True)
