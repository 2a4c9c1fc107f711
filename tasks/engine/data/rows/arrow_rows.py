"""Rows of Arrow tables, from Parquet and `datasets`, as Python values.

Arrow holds what Python can't: times beyond the year 9999, and text that is not UTF-8, which neither
Parquet nor Arrow files exclude. A row with such a cell is represented by an error.

Arrow also gives each object of a column all keys that any of them has, such as the arguments of
other tools. Nulls in objects are left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.engine.excerpts import excerpt, listed, reason
from tasks.errors import UserError

ROWS_AT_ONCE = 1000
"""Rows that are converted at once; they are in memory twice then."""


def parquet_rows(path: Path) -> Iterator[dict[str, object] | UserError]:
    """Yield the rows of a Parquet file, as `rows_of` does.

    Raises:
        UserError: it is not a Parquet file, or cut or damaged at its end, where its schema is.
    """
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(path)
    except Exception as error:  # whatever a damaged schema makes pyarrow raise
        raise UserError(f"{path} is not a readable Parquet file: {reason(error)}") from error
    with opened as file:
        yield from rows_of(file.iter_batches(batch_size=ROWS_AT_ONCE), str(path))


def rows_of(batches: Iterable[Any], source: str) -> Iterator[dict[str, object] | UserError]:
    """Yield the rows of Arrow batches or tables, with an error in place of each that can't be read.

    Args:
        batches: the rows in order, all with the same columns.
        source: where they are from, for messages.

    Raises:
        UserError: two columns have the same name, of which a row could have only one.
    """
    number = 1
    for batch in batches:
        _check_columns(batch.schema.names, source)
        yield from _rows(batch, number, source)
        number += batch.num_rows


def _check_columns(names: list[str], source: str) -> None:
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{source}: several columns have the name {listed(doubled)}; give each a name of its "
            "own"
        )


def _rows(batch: Any, first: int, source: str) -> list[Any]:  # noqa: ANN401
    try:
        # Offsets beyond the data, which pyarrow would follow, are found by a full validation only.
        batch.validate(full=True)
        rows = [_without_nulls(row) for row in batch.to_pylist()]
    except Exception:  # noqa: BLE001 - which cell it is shows cell by cell
        return [
            _row(batch.slice(index, 1), f"{source}, row {first + index}")
            for index in range(batch.num_rows)
        ]
    return rows


def _row(batch: Any, where: str) -> dict[str, object] | UserError:  # noqa: ANN401
    row: dict[str, object] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
            row[name] = _without_null_keys(column[0].as_py())
        except Exception as error:  # noqa: BLE001 - whatever pyarrow and the standard library raise
            return UserError(
                f"{where}: the column {excerpt(name)} can't be read ({column.type}): "
                f"{reason(error)}; correct the value, or leave the column out"
            )
    return row


def _without_nulls(row: dict[str, object]) -> dict[str, object]:
    return {name: _without_null_keys(value) for name, value in row.items()}


def _without_null_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_null_keys(one) for key, one in value.items() if one is not None}
    return list(map(_without_null_keys, value)) if isinstance(value, list) else value
