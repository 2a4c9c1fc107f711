"""Read the rows of a request and their cells: clients and tables have several forms of a value."""

import json
import math
from typing import Any

from .request_errors import refused, shown


def rows_of(table: Any, columns: set[str], max_rows: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return the rows of a request's table.

    Args:
        table: the table that MLflow makes of a request.
        columns: those that may hold a question.
        max_rows: the most rows of a request.

    Raises:
        RequestError: there are none or too many, or none of these columns.
    """
    # mlflow drops columns that the signature does not name, which may leave none.
    if not columns & set(table.columns):
        raise refused(f"the table needs a column {' or '.join(sorted(columns))}")
    rows: list[dict[str, Any]] = table.to_dict(orient="records")
    for name in {"prompt", "text"} & columns:
        # mlflow 3.17 makes one row of a request that is a column of texts, as {"prompt": […]}.
        if len(rows) == 1 and isinstance(texts := rows[0].get(name), list):
            rows = [{name: text} for text in texts]
    if not rows:
        raise refused("the request has no rows")
    if len(rows) > max_rows:
        raise refused(f"{len(rows)} rows in one request; at most {max_rows}")
    return rows


def cell_of(row: dict[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return a row's value; None if there is none, as an empty cell of a table is NaN."""
    given = row.get(name)
    return None if isinstance(given, float) and math.isnan(given) else given


def text_of(given: Any, name: str, *, may_be_blank: bool = False) -> str:  # noqa: ANN401
    """Return a text that a row must have.

    Raises:
        RequestError: it is missing, something else, or blank.
    """
    if not isinstance(given, str):
        raise refused(f"{name} is {shown(given)}; it must be text")
    if not may_be_blank and not given.strip():
        raise refused(f"{name} is empty; it must contain text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise refused(
            f"{name} contains half of a surrogate pair, which is not a character"
        ) from error
    return given


def parsed(cell: Any) -> Any:  # noqa: ANN401
    """Return a list that may have come as JSON, or as an array of a Parquet file."""
    try:
        cell = json.loads(cell, object_pairs_hook=_unique) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
    return cell.tolist() if hasattr(cell, "tolist") else cell


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return dict(pairs)
