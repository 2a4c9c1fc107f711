"""Write rows to a file of one of the kinds that they are read from."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tasks.engine.data.rows.row_sources import CSV_SUFFIXES, Row


def write_rows(rows: Sequence[Row], file: Path, suffix: str) -> None:
    """Write rows as JSON lines, CSV, TSV or Parquet.

    Lists and objects are JSON text, except in JSON lines: neither of the other two has a type for
    messages that differ in their keys.

    Args:
        rows: with values as JSON has them.
        file: the file to write.
        suffix: what its name will end in.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix in CSV_SUFFIXES:
        with file.open("w", encoding="utf-8", newline="") as opened:
            table = CsvTable(opened, names, "\t" if suffix == ".tsv" else ",")
            for row in rows:
                table.add({name: _cell(row.get(name)) for name in names})
    elif suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: [_plain(row.get(name)) for row in rows] for name in names}
        parquet.write_table(pa.table(columns), file)
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text("".join(lines), encoding="utf-8")


class CsvTable:
    """Writes a CSV file with a header; lines end in a line feed."""

    def __init__(self, file: TextIO, names: Sequence[str], separator: str) -> None:
        self._names = names
        self._writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        # Python 3.11's writer leaves a carriage return bare, which its reader takes for a line end.
        self._quoting = csv.writer(
            file, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL
        )
        self.add(dict(zip(names, names, strict=True)))

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row; columns that it lacks are empty."""
        cells = [row.get(name, "") for name in self._names]
        is_broken = any("\r" in cell for cell in cells if isinstance(cell, str))
        (self._quoting if is_broken else self._writer).writerow(cells)


def _plain(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else _plain(value)
