"""Text files, plain or compressed, and rows of the text in those that have no structure."""

import gzip
import io
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import IO

from tasks.config.reading import suffix_of


def open_text(path: Path, newline: str | None) -> IO[str]:
    """Open a file of UTF-8, decompressing it; a byte that is not UTF-8 becomes a surrogate."""
    raw: IO[bytes] | gzip.GzipFile
    match path.suffix.lower():
        case ".gz":
            raw = gzip.open(path)  # noqa: SIM115 - closed with the text
        case ".zst":
            # pyarrow, which datasets needs anyway, reads Zstandard; Python does from 3.14 on.
            from pyarrow import input_stream

            raw = input_stream(str(path), compression="zstd")
        case _:
            raw = path.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def have_paragraphs(lines: Iterable[str]) -> bool:
    """Return whether a blank line stands between two lines of a text."""
    are_blank = (not line.strip() for line in lines)
    return len(list(islice((key for key, _ in groupby(are_blank) if not key), 2))) > 1


def texts(lines: Iterable[str], *, by_line: bool) -> Iterator[tuple[int, str]]:
    """Yield each paragraph, or each line, of a text after the number of its first line.

    Args:
        lines: of the text, with their line breaks.
        by_line: whether lines that are not blank are yielded, and not paragraphs.
    """
    numbered = enumerate(lines, 1)
    for is_blank, group in groupby(numbered, key=lambda one: not one[1].strip()):
        if is_blank:
            continue
        if by_line:
            yield from ((number, line.rstrip("\r\n")) for number, line in group)
        else:
            (number, first), *more = group
            yield number, "".join([first, *(line for _, line in more)]).rstrip("\r\n")


def documents(folder: Path) -> list[Path]:
    """Return the files of a folder that contains nothing but text files, sorted by name."""
    files = [one for one in sorted(folder.iterdir()) if not one.name.startswith(".")]
    are_texts = all(one.is_file() and suffix_of(one) == ".txt" for one in files)
    return files if are_texts else []
