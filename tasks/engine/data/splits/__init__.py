"""Examples in splits: sources opened, checked, mixed and held out, and what is odd about them."""

from tasks.engine.data.splits.examples import ExampleSets, check_first_rows, read_examples
from tasks.engine.data.splits.held_out_split import drawn_rows, write_split
from tasks.engine.data.splits.lazy_sequence import LazySequence
from tasks.engine.data.splits.leakage import Leaks, find_leaks, normalized_question
from tasks.engine.data.splits.mixing import DrawnRows, Split, mixed
from tasks.engine.data.splits.odd_rows import MOSTLY_PROMPT, SHOWN_ROWS, TRUNCATED, Oddity, odd_text
from tasks.engine.data.splits.opened_sources import open_sources
from tasks.engine.data.splits.values_of_column import ColumnValues, column_values

__all__ = [
    "MOSTLY_PROMPT",
    "SHOWN_ROWS",
    "TRUNCATED",
    "ColumnValues",
    "DrawnRows",
    "ExampleSets",
    "LazySequence",
    "Leaks",
    "Oddity",
    "Split",
    "check_first_rows",
    "column_values",
    "drawn_rows",
    "find_leaks",
    "mixed",
    "normalized_question",
    "odd_text",
    "open_sources",
    "read_examples",
    "write_split",
]
