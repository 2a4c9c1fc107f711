"""Rows split into two files: those to train on, and those that are held out for good."""

import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tasks.config.reading import suffix_of
from tasks.engine.data.rows import Example, Row, open_text
from tasks.engine.data.splits.leakage import find_leaks, normalized_question
from tasks.errors import UserError

_JSONL = (".jsonl", ".ndjson")


def drawn_rows(examples: Sequence[Example], count: int, seed: int) -> set[int]:
    """Return the numbers, from 1, of rows to hold out, drawn by the seed: `count`, or fewer.

    None of them asks what another row asks, ignoring case, punctuation and whitespace, occurs in
    the rows that remain, or has a class that none of those has.
    """
    asked = [normalized_question(one) for one in examples]
    times = Counter(asked)
    single = [one.row for one, question in zip(examples, asked, strict=True) if times[question] < 2]  # noqa: PLR2004 - asked once
    random.Random(seed).shuffle(single)  # noqa: S311 - no secret
    held_out = set(single[:count])
    # A row that is put back may contain, or lack, what others need: repeat until none is put back.
    while unfit := _unfit(examples, held_out):
        held_out -= unfit
    return held_out


def _unfit(examples: Sequence[Example], held_out: Collection[int]) -> set[int]:
    apart = [one for one in examples if one.row in held_out]
    trained = [one for one in examples if one.row not in held_out]
    known = {label for one in trained for label in one.labels}
    leaks = find_leaks(apart, trained)
    unknown = (one.row for one in apart if not known.issuperset(one.labels))
    return {*leaks.exact, *leaks.normalized, *unknown}


def write_split(
    source: str, rows: Sequence[Row], held_out: Collection[int], train: Path, apart: Path
) -> None:
    """Write a source's rows into two files of JSON lines, in order.

    The lines of a JSONL file are copied byte by byte. Rows of other files are written as JSON, and
    a value that JSON has no form for, such as a date, as text.

    Args:
        source: where the rows are from.
        rows: all of them.
        held_out: the numbers, from 1, of those for the second file.
        train: the first file.
        apart: the second file.

    Raises:
        UserError: the source has other rows by now.
    """
    num_lines = 0
    with train.open("wb") as first, apart.open("wb") as second:
        for num_lines, line in enumerate(_lines(source, rows), 1):
            (second if num_lines in held_out else first).write(line)
    if num_lines != len(rows):
        raise UserError(f"{source} changed while it was read; start again")


def _lines(source: str, rows: Sequence[Row]) -> Iterator[bytes]:
    path = Path(source).expanduser()
    if not path.is_file() or suffix_of(path) not in _JSONL:
        yield from map(_json_line, rows)
        return
    with open_text(path, newline="\n") as file:
        for line in file:
            if line.strip():
                yield line.encode(errors="surrogateescape").removesuffix(b"\n") + b"\n"


def _json_line(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row, default=str).encode() + b"\n"
