"""What the processes of a training are given, and what they leave: files in one folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from tasks.config import TrainingSettings
from tasks.records import DataRecord, InjectedRecord, Record, TrainedRecord
from tasks.runtime.atomic_files import write_atomically


class Work(Record):
    """The input of step 4, for each process of the group."""

    injected: InjectedRecord
    data: DataRecord
    settings: TrainingSettings
    checkpoints: Path
    max_eval_rows: int | None
    size: int
    """The number of processes."""
    shards: bool = False
    """Whether each of them has a part of the base."""


class LocalWork(Work):
    """What processes of one machine get beside it."""

    parent: int
    """The process that started them, without which they end."""
    meeting_point: Path
    """The file by which they find each other, on a local disk."""


class Sharded(Record):
    """A base that the processes have parts of, after they loaded it."""

    whole_bytes: int
    """Of the base's weights."""
    own_bytes: tuple[int, ...]
    """Of them, of each process."""
    loading_peak_bytes: tuple[int, ...]
    """The most memory that each process had until then, libraries included."""
    loading_peak_gpu_bytes: tuple[int, ...]

    @property
    def share(self) -> float:
        """The largest part that a process has."""
        return max(self.own_bytes) / self.whole_bytes

    @property
    def text(self) -> str:
        """What a reader should know of it."""
        peak = f"{max(self.loading_peak_bytes) / 1e6:,.0f} MB of memory"
        if any(self.loading_peak_gpu_bytes):
            peak += f" and {max(self.loading_peak_gpu_bytes) / 1e6:,.0f} MB of its GPU"
        return (
            f"each process has {max(self.own_bytes) / 1e6:,.1f} MB of the base's "
            f"{self.whole_bytes / 1e6:,.1f} MB ({self.share:.0%}), and used up to {peak} "
            "to load it; transformers computes norms and gates, as their weights are sharded"
        )


class Outcome(Record):
    """How a training ended in all processes, as the first one says."""

    trained: TrainedRecord | None = None
    """None if it stopped as it was asked to."""
    stopped: str = ""
    peak_memory_bytes: tuple[int, ...] = ()
    peak_gpu_bytes: tuple[int, ...] = ()
    """Of each process."""
    sharded: Sharded | None = None
    """What each process has of the base, if it is not all of it."""


class Failure(Record):
    """The error that ended a process."""

    kind: str
    """The error's class."""
    message: str


_LOST_PEER = "LostPeerError"


def causes(failures: Mapping[int, Failure]) -> dict[int, Failure]:
    """Return the failures of those that did not only lose another one, unless all did."""
    own = {rank: one for rank, one in failures.items() if one.kind != _LOST_PEER}
    return own or dict(failures)


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
        """A file that is empty until the training is to stop."""
        return self.folder / "stop"

    def request_stop(self) -> None:
        """Have the training stop after its step."""
        # In place: NFS finds out at each opening that a file changed, but remembers for up to a
        # minute that one is missing.
        self.stop.write_text("stop")

    def is_stopping(self) -> bool:
        """Return whether the training is to stop."""
        return bool(self.stop.read_bytes())

    @property
    def outcome(self) -> Path:
        """The `Outcome`."""
        return self.folder / "outcome.json"

    def failure(self, rank: int) -> Path:
        """Return the file of a process's `Failure`."""
        return self.folder / f"failure-{rank}.json"

    def leave_failure(self, rank: int, error: BaseException) -> None:
        """Record what ended a process."""
        failure = Failure(kind=type(error).__name__, message=str(error))
        write_atomically(self.failure(rank), failure.model_dump_json())

    def failure_of(self, rank: int) -> Failure | None:
        """Return what a process left as its failure, if it did."""
        file = self.failure(rank)
        return Failure.model_validate_json(file.read_bytes()) if file.exists() else None

    def log(self, rank: int) -> Path:
        """Return the file that has what a process prints."""
        return self.folder / f"process-{rank}.log"

    @property
    def of_ray(self) -> Path:
        """The folder that Ray wants for its own."""
        return self.folder / "ray"

    def prepare(self) -> None:
        """Remove what an earlier attempt left, except its reports; make the files to be watched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.iterdir():
            if file == self.of_ray:
                shutil.rmtree(file)
            elif file != self.reports:
                file.unlink(missing_ok=True)
        self.stop.touch()
        self.reports.touch()

    def remove(self) -> None:
        """Remove the folder, once the training is done."""
        shutil.rmtree(self.folder)
