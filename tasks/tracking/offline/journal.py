"""The journal: operations are written to the run's folder first, and shipped to MLflow from there.

The folder `tracking` contains `run.json`, the run; `journal.jsonl`, one operation per line,
append-only; `files`, what the operations upload; `position.json`, how far the journal was shipped;
and `refused.jsonl`, operations that the server will never accept.
"""

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import ValidationError

from tasks.records import Record, RunRecord
from tasks.runtime.atomic_files import atomic_file, write_atomically

UNREADABLE = "unreadable"
_HEAD_BYTES = 80
"""Bytes of a line that contain its time and the operation's name."""


class Entry(NamedTuple):
    """An operation of the journal."""

    name: str
    arguments: dict[str, Any]
    time_ms: int
    """When it was written, in milliseconds since 1970-01-01 UTC."""
    end: int
    """Offset of the entry's end in the journal, in bytes."""


class Position(Record):
    """How far the journal was shipped, and to which MLflow run."""

    run_id: str | None = None
    shipped_bytes: int = 0


class Journal:
    """The operations of one run, in order. One process appends; any process may ship."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "tracking"
        self._file = self.folder / "journal.jsonl"
        self._run_file = self.folder / "run.json"
        self._position_file = self.folder / "position.json"

    def open(self, run: RunRecord) -> None:
        """Create the journal if it does not exist, and record which run it belongs to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._run_file, run.model_dump_json())

    def is_open(self) -> bool:
        """Return whether the journal exists; a discarded run has none."""
        return os.access(self._run_file, os.R_OK)

    def run(self) -> RunRecord:
        """Return the journal's run, with the folder where it is now."""
        run = RunRecord.model_validate_json(self._run_file.read_bytes())
        return run.model_copy(update={"folder": self.folder.parent})

    def append(self, name: str, /, *, durable: bool = False, **arguments: object) -> None:
        """Append an operation, which survives this process and, if durable, a loss of power."""
        fields = {"at": now_ms(), "do": name, "with": arguments}
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        with self._file.open("a+b", buffering=0) as file:
            _cut_incomplete_line(file.fileno())
            file.write(line.encode())
            if durable:
                os.fsync(file.fileno())

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield the entries from byte `start` on, without an incomplete last line."""
        with self._opened() as file:
            file.seek(start)
            for line in file:
                if line.endswith(b"\n"):
                    start += len(line)
                    yield _entry(line, start)

    def named(self, *names: str) -> Iterator[Entry]:
        """Yield the entries of these operations, without parsing the others."""
        marks = [f'"do": "{name}"'.encode() for name in names]
        start = 0
        with self._opened() as file:
            for line in file:
                start += len(line)
                if line.endswith(b"\n") and any(mark in line[:_HEAD_BYTES] for mark in marks):
                    entry = _entry(line, start)
                    if entry.name in names:
                        yield entry

    def _opened(self) -> BinaryIO:
        try:
            return self._file.open("rb")
        except FileNotFoundError:  # nothing was written yet, or the run is being removed
            return io.BytesIO()

    def waiting(self) -> Iterator[Entry]:
        """Yield the entries that are not shipped yet."""
        yield from self.entries(self.position.shipped_bytes)

    def num_waiting(self) -> int:
        """Return the number of operations that are not shipped yet."""
        return sum(1 for _ in self.waiting())

    @property
    def position(self) -> Position:
        """How far the journal was shipped; its start if that is unknown."""
        try:
            position = Position.model_validate_json(self._position_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return Position()
        # Only after a loss of power is the journal shorter than what was shipped of it.
        size = self._file.stat().st_size if self._file.exists() else 0
        return position if position.shipped_bytes <= size else Position()

    @position.setter
    def position(self, position: Position) -> None:
        # Written after each operation. Lost with power, operations are applied again, which changes
        # nothing.
        write_atomically(self._position_file, position.model_dump_json(), durable=False)

    def keep(self, source: Path, key: str) -> str:
        """Keep a file, or a folder's files, for the upload; return the path within `folder`.

        A file is copied. A folder's files, which may be large, are hard-linked: they are never
        modified in place, only replaced.
        """
        place = Path("files") / key / source.name
        if source.is_file():
            _put(source, self.folder / place, link=False)
        for file in source.rglob("*"):
            if file.is_file():
                _put(file, self.folder / place / file.relative_to(source), link=True)
        return place.as_posix()

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Record an operation that the server will never accept."""
        line = {"do": entry.name, "with": entry.arguments, "reason": reason}
        with (self.folder / "refused.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    @contextmanager
    def alone(self, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the lock under which one process ships.

        Raises:
            filelock.Timeout: another process held it for longer than `wait_seconds`.
        """
        from filelock import FileLock

        with FileLock(self.folder / "lock", timeout=wait_seconds):
            yield

    def drop(self) -> None:
        """Remove the journal, and the run's folder if it is then empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()


def now_ms() -> int:
    """Return the time in milliseconds since 1970-01-01 UTC, as MLflow counts it."""
    return int(time.time() * 1000)


def _entry(line: bytes, end: int) -> Entry:
    try:
        fields = json.loads(line)
        return Entry(fields["do"], fields["with"], fields["at"], end)
    except (ValueError, KeyError, TypeError):
        return Entry(UNREADABLE, {"line": line.decode(errors="replace")}, now_ms(), end)


def _cut_incomplete_line(descriptor: int) -> None:
    """Truncate an incomplete last line, which a crash left and which would corrupt the next one."""
    end = os.fstat(descriptor).st_size
    if not end or os.pread(descriptor, 1, end - 1) == b"\n":
        return
    content = os.pread(descriptor, end, 0)
    os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def _put(source: Path, target: Path, *, link: bool) -> None:
    with atomic_file(target) as sibling:
        try:
            if not link:
                raise OSError  # noqa: TRY301 - copy, as where links are not supported
            os.link(source, sibling)
        except OSError:
            shutil.copy2(source, sibling)
