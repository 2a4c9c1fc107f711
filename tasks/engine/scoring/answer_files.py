"""Write rows with their answers, in the format of the file that the rows came from."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.engine.data.rows import CSV_SUFFIXES, CsvTable, csv_separator
from tasks.engine.scoring.prediction import Answered
from tasks.engine.scoring.question_files import QuestionFile
from tasks.errors import UserError


def write_answers(
    asked: QuestionFile, answers: Sequence[Answered], columns: Mapping[str, str], target: Path
) -> None:
    """Write the rows in their order, with the answers in new columns.

    Args:
        asked: the rows; their columns are written unchanged.
        answers: one per row.
        columns: the names of the new columns, by the fields of `Answered` that they hold.
        target: the file to write, in the format of the input.
    """
    kinds = {**dict.fromkeys(CSV_SUFFIXES, _write_csv), ".parquet": _write_parquet}
    write = kinds.get(asked.source.suffix.lower(), _write_json)
    new = [{name: getattr(one, field) for field, name in columns.items()} for one in answers]
    write(asked, new, target)


_New = list[dict[str, str | float | None]]


def _write_json(asked: QuestionFile, new: _New, target: Path) -> None:
    with target.open("w", encoding="utf-8") as file:
        for row, added in zip(asked.rows, new, strict=True):
            kept = {} if isinstance(row, UserError) else row
            file.write(_json_line({**kept, **added}) + "\n")


def _json_line(row: Mapping[str, object]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which is valid in JSON only as an escape
        return json.dumps(row)
    return text


def _write_csv(asked: QuestionFile, new: _New, target: Path) -> None:
    # Only the header is read here; the rows below may have bytes that are not UTF-8.
    with asked.source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        separator = csv_separator(file.readline(), asked.source)
        file.seek(0)
        old = next(csv.reader(file, delimiter=separator))
    with target.open("w", encoding="utf-8", newline="") as file:
        table = CsvTable(file, [*old, *new[0]], separator)
        for row, added in zip(asked.rows, new, strict=True):
            kept = {} if isinstance(row, UserError) else row
            table.add({**kept, **added})


def _write_parquet(asked: QuestionFile, new: _New, target: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(asked.source)
    for column in new[0]:
        values = [row[column] for row in new]
        kind = pa.float64() if any(isinstance(one, float) for one in values) else pa.string()
        table = table.append_column(column, pa.array(values, kind))
    parquet.write_table(table, target)
