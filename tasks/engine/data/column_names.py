"""Rows whose columns have other names than ours, as `columns` of a source names them."""

from collections.abc import Iterable, Iterator, Mapping

from tasks.engine.data.row_sources import Row
from tasks.errors import UserError


def renamed(
    rows: Iterable[Row], columns: Mapping[str, str], setting: str = "data.columns"
) -> Iterator[Row]:
    """Return rows whose columns have our names.

    A column that has one of these names already keeps its value under another, as it is not meant.

    Args:
        rows: of a source, in order.
        columns: from names of ours to those in the source.
        setting: the name of the setting, for messages.

    Raises:
        UserError: the first row has no column of one of the names.
    """
    ours = {theirs: name for name, theirs in columns.items()}
    for number, row in enumerate(rows):
        missing = [theirs for theirs in ours if theirs not in row]
        if missing and not number:
            raise UserError(
                f"{setting} names {', '.join(map(repr, missing))}, but the first row has no such "
                f"column; its columns: {', '.join(map(str, row)) or '(none)'}"
            )
        yield {
            ours.get(name, f"{name} (not {columns[name]})" if name in columns else name): value
            for name, value in row.items()
        }
