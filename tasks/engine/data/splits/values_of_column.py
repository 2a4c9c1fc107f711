"""The values of a column: how many rows have each, to train an adapter for each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.config.columns import value_text
from tasks.config.data import DataSettings
from tasks.config.variants import MOST_VARIANTS
from tasks.engine.data.rows import Row
from tasks.engine.data.splits.opened_sources import held_out_rows, training_rows
from tasks.engine.excerpts import listed
from tasks.errors import UserError


@dataclass(frozen=True)
class ColumnValues:
    """The number of rows with each value, in the order of the first."""

    train: Counter[str]
    eval: Counter[str] | None
    """Of the held-out rows; None where they are drawn from the training rows."""
    num_without: int
    """Training rows without a value."""
    first_without: int
    """The number of the first of them, from 1; 0 if there is none."""


def column_values(settings: DataSettings, column: str, setting: str) -> ColumnValues:
    """Count the values of a column; the data is read once, row by row.

    Args:
        settings: where the rows are.
        column: by its name in the file.
        setting: that names it, for messages.

    Raises:
        UserError: no row has the column, or it has more values than there can be variants.
    """
    source = settings.sources[0].path
    train, num_without, first = _counted(training_rows(settings), column, setting, source)
    if not (settings.eval or settings.eval_split):
        return ColumnValues(train, None, num_without, first)
    name = settings.eval or f"{source} ({settings.eval_split})"
    apart, _, _ = _counted(held_out_rows(settings), column, setting, name)
    return ColumnValues(train, apart, num_without, first)


def _counted(
    rows: Iterator[Row], column: str, setting: str, source: str
) -> tuple[Counter[str], int, int]:
    """Return the number of rows by value, the number without one, and the first of those."""
    found, seen = Counter[str](), dict[str, None]()
    num_without = first_without = 0
    for number, row in enumerate(rows, start=1):
        if (text := value_text(row.get(column))) is not None:
            found[text] += 1
        else:
            num_without += 1
            first_without = first_without or number
            seen |= dict.fromkeys(row)
        if len(found) > MOST_VARIANTS:
            raise UserError(
                f"{setting} names {column!r}, which has more than {MOST_VARIANTS:,} values in "
                f"{source}; name a column that groups rows, such as tenant or language"
            )
    if not found:
        where = "has no text, number or true/false in" if column in seen else "is no column of"
        raise UserError(
            f"{setting} names {column!r}, which {where} any row of {source}; the columns: "
            f"{listed(seen) or '(none)'}"
        )
    return found, num_without, first_without
