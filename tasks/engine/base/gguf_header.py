"""The header of a GGUF file, checked before a library reads it.

The gguf package 0.19 believes the counts in it: past the file's end it reads nothing, without an
error, and appends that to a list as often as the header says.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tasks.engine.reading import check_file, reading

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""The bytes of a value by its type: integers, floating-point numbers and booleans."""
_INTEGERS = {0: "<B", 2: "<H", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8
_MOST_LAYERS = 10_000


def check_gguf(file: Path) -> None:
    """Check that a GGUF file's header is complete, and its counts and sizes fit the file.

    Raises:
        UserError: it is not a GGUF file, is truncated, or its counts are impossible.
    """
    check_file(file, f"the GGUF file {file}")
    problem = f"the GGUF file {file} can't be read (it may be truncated; download it again)"
    with reading(problem), file.open("rb") as opened:
        _Header(opened, file.stat().st_size).walk()


@dataclass
class _Header:
    file: BinaryIO
    size: int
    layers: list[tuple[str, int]] = field(default_factory=list)

    def walk(self) -> None:
        """Read everything before the weights.

        Raises:
            ValueError: it is not that of a GGUF file.
        """
        if (magic := self._take(4)) != _MAGIC:
            raise ValueError(f"it begins with {magic!r} instead of {_MAGIC!r}")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ValueError(f"it has version {version}; possible: {_VERSIONS}")
        num_tensors, num_fields = self._number("<Q"), self._number("<Q")
        self._check_count(num_tensors, "tensors", 24)
        self._check_count(num_fields, "fields", 13)
        for _ in range(num_fields):
            self._field()
        for _ in range(num_tensors):
            self._tensor()
        for key, number in self.layers:
            if not 1 <= number <= min(_MOST_LAYERS, num_tensors):
                raise ValueError(f"{key} is {number}, but there are {num_tensors} tensors")

    def _take(self, count: int) -> bytes:
        taken = self.file.read(count) if count <= self.size else b""
        if len(taken) < count:
            raise ValueError(f"it ends within {count} bytes at byte {self.file.tell()}")
        return taken

    def _number(self, kind: str) -> int:
        (number,) = struct.unpack(kind, self._take(struct.calcsize(kind)))
        return int(number)

    def _check_count(self, count: int, what: str, least_bytes: int) -> None:
        if count * least_bytes > self.size - self.file.tell():
            raise ValueError(f"it has {count:,} {what} in {self.size:,} bytes")

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode(errors="replace")

    def _field(self) -> None:
        key, kind = self._text(), self._number("<I")
        if kind in _INTEGERS and key.endswith(".block_count"):
            self.layers.append((key, self._number(_INTEGERS[kind])))
        else:
            self._value(kind, key)

    def _value(self, kind: int, key: str) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            of, count = self._number("<I"), self._number("<Q")
            self._check_count(count, f"values of {key}", _BYTES.get(of, 8))
            if of in _BYTES:
                self.file.seek(count * _BYTES[of], 1)
            else:
                for _ in range(count):
                    self._value(of, key)
        elif kind in _BYTES:
            self._take(_BYTES[kind])
        else:
            raise ValueError(f"{key} has the unknown type {kind}")

    def _tensor(self) -> None:
        name, num_dimensions = self._text(), self._number("<I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name} has {num_dimensions} dimensions")
        self._take(8 * num_dimensions)  # its shape
        self._number("<I")  # its type
        if self._number("<Q") > self.size:
            raise ValueError(f"the tensor {name} begins beyond the end of the file")
