"""What all records have in common, and the record of a file.

Records are frozen and round-trip through JSON. They hold no model and no tensor. A record whose
files are missing or changed counts as absent.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A state that was reached, and what it takes to reach it again."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def is_intact(self) -> bool:
        """Return whether every file that the record names still has the recorded content."""
        return not self.spoiled_files()

    def spoiled_files(self) -> list[Path]:
        """Return the files named by the record, or by one in it, that are missing or changed."""
        values = (getattr(self, name) for name in type(self).model_fields)
        parts = (part for v in values for part in (v if isinstance(v, tuple) else (v,)))
        return [path for part in parts if isinstance(part, Record) for path in part.spoiled_files()]


class FileRecord(Record):
    """A file and its content's sha256."""

    path: Path
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Record the file as it is now."""
        status = path.stat()
        digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
        return cls(path=path, sha256=digest, size_bytes=status.st_size)

    def spoiled_files(self) -> list[Path]:
        """Return the file, if it no longer has the recorded content."""
        is_same = self.path.is_file() and FileRecord.of(self.path) == self
        return [] if is_same else [self.path]


# The arguments beside the path are the key: a file of unchanged size, time and inode is hashed
# once a process, as base weights may have many gigabytes and every step checks them.
@lru_cache(maxsize=1024)
def _sha256(path: Path, size_bytes: int, changed_ns: int, inode: int) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
