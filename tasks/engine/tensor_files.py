"""The headers of safetensors files: names, dtypes and shapes of the weights, without reading one.

A file is 8 bytes with the length of its JSON header, little-endian, the header, and the weights.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.engine.reading import check_file, reading

if TYPE_CHECKING:
    import numpy as np

_VALUES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class TensorEntry:
    """What a header says about a tensor."""

    dtype: str
    """As safetensors names it, such as `F32`, `BF16` or `I64`."""
    shape: tuple[int, ...]
    start: int
    """Where its values begin in the file, in bytes."""
    num_bytes: int

    @property
    def is_floating(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


def read_header(file: Path, name: str) -> Mapping[str, TensorEntry]:
    """Return the tensors of a safetensors file by name.

    Args:
        file: to read.
        name: of the file in messages.

    Raises:
        UserError: it is not a safetensors file, or truncated.
    """
    check_file(file, name)
    with reading(f"{name} can't be read (it may be truncated; download or save it again)"):
        from safetensors import safe_open

        # Checks all of the header: lengths, dtypes, and that the offsets fit the file's size.
        with safe_open(file, "np"):
            pass
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header: dict[str, Any] = json.loads(opened.read(length))
        return {
            key: _entry(one, 8 + length) for key, one in header.items() if key != "__metadata__"
        }


def _entry(given: Mapping[str, Any], begin: int) -> TensorEntry:
    start, end = given["data_offsets"]
    return TensorEntry(given["dtype"], tuple(given["shape"]), begin + start, end - start)


def first_not_finite(file: Path, header: Mapping[str, TensorEntry]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity; None if all are finite."""
    import numpy as np

    for key, entry in header.items():
        values = _values(file, entry)
        if any(not np.isfinite(some).all() for some in values):
            return key
    return None


def _values(file: Path, entry: TensorEntry) -> Iterator["np.ndarray"]:
    """Yield the tensor's values in parts; nothing for dtypes that NumPy lacks."""
    import numpy as np

    # A bfloat16 is the first half of a float32.
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if entry.dtype not in kinds or not entry.num_bytes:
        return
    kind = np.dtype(kinds[entry.dtype])
    values = np.memmap(file, kind, "r", entry.start, (entry.num_bytes // kind.itemsize,))
    for first in range(0, len(values), _VALUES_AT_ONCE):
        some = values[first : first + _VALUES_AT_ONCE]
        yield (some.astype("<u4") << 16).view("<f4") if entry.dtype == "BF16" else some
