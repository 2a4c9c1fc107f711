"""Only the rows of a source with certain values, as `data.where` names them."""

from collections.abc import Iterator, Mapping
from itertools import islice

from tasks.config.columns import value_text
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import excerpt, listed
from tasks.errors import UserError

_SHOWN_VALUES = 10
_KEPT_VALUES = 1000


def matching_rows(rows: Iterator[Row], where: Mapping[str, str], source: str) -> Iterator[Row]:
    """Return the rows that have these values in these columns, compared as text.

    Args:
        rows: of a source, in order.
        where: values by the source's names of columns.
        source: its name, for messages.

    Raises:
        UserError: no row has a column, or none has the values. It is raised after the last row.
    """
    return _matching(rows, where, source) if where else rows


def where_text(where: Mapping[str, str]) -> str:
    """Describe which rows are meant, behind the name of their source; empty if all are."""
    if not where:
        return ""
    return " where " + " and ".join(f"{name} is {excerpt(value)}" for name, value in where.items())


def _matching(rows: Iterator[Row], where: Mapping[str, str], source: str) -> Iterator[Row]:
    seen: dict[str, None] = {}
    values: dict[str, dict[str, None]] = {name: {} for name in where}
    has_any = False
    for row in rows:
        if all(value_text(row.get(name)) == value for name, value in where.items()):
            has_any = True
            yield row
        elif not has_any:
            seen |= dict.fromkeys(row)
            for name, found in values.items():
                if (text := value_text(row.get(name))) and len(found) < _KEPT_VALUES:
                    found[text] = None
    if not has_any:
        raise _without(where, source, list(seen), values)


def _without(
    where: Mapping[str, str], source: str, columns: list[str], values: Mapping[str, dict[str, None]]
) -> UserError:
    if missing := [name for name in where if name not in columns]:
        return UserError(
            f"data.where names {missing[0]!r}, but no row of {source} has such a column; the "
            f"columns: {listed(columns) or '(none)'}"
        )
    name = next((one for one in where if where[one] not in values[one]), next(iter(where)))
    shown = ", ".join(map(excerpt, islice(values[name], _SHOWN_VALUES)))
    more = ", …" if len(values[name]) > _SHOWN_VALUES else ""
    return UserError(
        f"there is no row of {source}{where_text(where)}, as data.where asks; values of {name}: "
        f"{shown or '(none)'}{more}"
    )
