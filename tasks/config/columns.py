"""The columns that rows are read from, and the mapping to other names in a file."""

import math
from collections import Counter
from typing import Annotated

from pydantic import AfterValidator

COLUMNS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "reasoning_content",
    "weight",
    "text",
    "label",
    "tokens",
    "tags",
)
"""The columns that rows are read from."""


def value_text(value: object) -> str | None:
    """Return a row's value as text to compare; None if it has none, or is a list or mapping.

    A value is the same in a CSV file, whose cells are texts, as in JSON: 3 and 3.0 are `3`, and
    true is `true`.
    """
    if value is None or isinstance(value, list | tuple | dict):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return str(value) or None


def _are_columns(names: dict[str, str]) -> dict[str, str]:
    if unknown := [ours for ours in names if ours not in COLUMNS]:
        raise ValueError(
            f"{unknown[0]!r} is not a column that rows are read from; write the name here first "
            "and the file's second, such as {prompt: question, completion: answer}; possible: "
            f"{', '.join(COLUMNS)}"
        )
    theirs, times = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    if times > 1:
        both = [ours for ours, name in names.items() if name == theirs]
        raise ValueError(
            f"{' and '.join(both)} are both read from {theirs!r}; name one column each"
        )
    return names


ColumnNames = Annotated[dict[str, str], AfterValidator(_are_columns)]
"""A mapping from our names of columns to those in a file."""
