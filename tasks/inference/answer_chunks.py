"""Save answers chunk by chunk beside the output, so that an interruption costs one chunk at most.

The folder's `job.json` has all that the answers depend on. Each chunk is written atomically, and so
is the output; after that the folder is removed.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

from tasks.engine.scoring import Answered
from tasks.errors import UserError
from tasks.runtime.atomic_files import atomic_file, hidden, write_atomically

_JOB_FILE = "job.json"


class AnswerChunks:
    """The folder of an unfinished output."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def of(cls, output: Path, job: Mapping[str, object]) -> Iterator[Self]:
        """Open or create the folder, exclusively for this process.

        Args:
            output: the file that the answers are for.
            job: all that the answers depend on, as JSON values.

        Raises:
            UserError: another process has it open, or it contains answers of another job.
        """
        from filelock import FileLock, Timeout

        folder = hidden(output, "partial")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        try:
            with lock:
                _check_job(folder, job)
                yield cls(folder)
        except Timeout:
            raise UserError(f"another process is writing {output}") from None

    def get(self, start: int) -> list[Answered] | None:
        """Return the chunk that starts at this row; None if it was not saved."""
        file = self._file(start)
        if not file.is_file():
            return None
        lines = file.read_text(encoding="utf-8").split("\n")
        return [Answered(**json.loads(line)) for line in lines if line]

    def put(self, start: int, answers: list[Answered]) -> None:
        """Save a chunk atomically."""
        lines = (json.dumps(asdict(one), ensure_ascii=True) + "\n" for one in answers)
        write_atomically(self._file(start), "".join(lines))

    def finish(self, output: Path, write: Callable[[Path], None]) -> None:
        """Write the output atomically by calling `write`, and remove the chunks."""
        with atomic_file(output) as sibling:
            write(sibling)
        shutil.rmtree(self._folder)

    def _file(self, start: int) -> Path:
        return self._folder / f"chunk-{start:09d}.jsonl"


def _check_job(folder: Path, job: Mapping[str, object]) -> None:
    file = folder / _JOB_FILE
    if not file.is_file():
        write_atomically(file, json.dumps(job, indent=2) + "\n")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(key for key in before.keys() | job.keys() if before.get(key) != job.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder} contains answers of an earlier attempt with a different "
            f"{' and '.join(changed)} ({key}: {before.get(key)}, now {job.get(key)}); restore the "
            "earlier inputs to resume, or delete the folder to start over"
        )
