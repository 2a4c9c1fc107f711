"""Rows whose columns have other names than ours, as `data.columns` names them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice

from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import listed
from tasks.errors import UserError

_FIRST_ROWS = 1000


def renamed_row(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row whose columns have our names.

    Where another column has one of our names already, it is renamed to one that is not read, so
    that it is counted as unread.

    Args:
        row: the row as it is in its source.
        columns: from names of ours to those in the source.
    """
    ours = {theirs: name for name, theirs in columns.items()}
    found: Row = {}
    for name, value in row.items():
        if name in ours:
            found[ours[name]] = value
        else:
            found[f"{name} (not {columns[name]})" if name in columns else name] = value
    return found


def renamed(
    rows: Iterable[Row], columns: Mapping[str, str], setting: str = "data.columns"
) -> Iterator[Row]:
    """Return rows as `renamed_row` does.

    Args:
        rows: of a source, in order.
        columns: as for `renamed_row`.
        setting: the name of the setting, for messages.

    Raises:
        UserError: no row has a column of one of the names. It is raised before the first row if all
            rows are among the first thousand, or else after the last.
    """
    return _renamed(iter(rows), columns, setting) if columns else iter(rows)


def _renamed(rows: Iterator[Row], columns: Mapping[str, str], setting: str) -> Iterator[Row]:
    missing, seen = set(columns.values()), dict[str, None]()
    first: list[Row] = []
    for row in islice(rows, _FIRST_ROWS):
        first.append(row)
        seen |= dict.fromkeys(row)
        missing.difference_update(row)
        if not missing:
            break
    if missing and len(first) < _FIRST_ROWS:
        raise _missing(missing, seen, setting)
    for row in chain(first, rows):
        missing.difference_update(row)
        yield renamed_row(row, columns)
    if missing:
        raise _missing(missing, seen, setting)


def _missing(missing: Iterable[str], seen: Collection[str], setting: str) -> UserError:
    names = listed([repr(name) for name in sorted(missing)])
    return UserError(
        f"{setting} names {names}, but no row has such a column; the columns: "
        f"{listed(seen) or '(none)'}"
    )
