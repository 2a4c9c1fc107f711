"""Files to examples: sources of rows, their formats, and what of a row is not read."""

from tasks.engine.data.rows.column_names import renamed, renamed_row
from tasks.engine.data.rows.column_proposals import columns_beside_text, possible_columns
from tasks.engine.data.rows.conversations import Example, Message, ToolCall
from tasks.engine.data.rows.corrected_rows import (
    Review,
    ReviewColumns,
    Verdict,
    label_rows,
    pair_row,
    read_review,
)
from tasks.engine.data.rows.json_values import parse_answer, same_json
from tasks.engine.data.rows.reading_errors import BadRowError, naming_row, refusing_row
from tasks.engine.data.rows.row_files import CsvTable, write_rows
from tasks.engine.data.rows.row_formats import detect_row_format, read_example, read_question
from tasks.engine.data.rows.row_sources import (
    CSV_SUFFIXES,
    Row,
    csv_separator,
    iter_rows,
    read_lines,
    read_rows,
)
from tasks.engine.data.rows.rows_where import matching_rows, where_text
from tasks.engine.data.rows.text_files import open_text
from tasks.engine.data.rows.unread_columns import columns_unread, count_unread, unread_text

__all__ = [
    "CSV_SUFFIXES",
    "BadRowError",
    "CsvTable",
    "Example",
    "Message",
    "Review",
    "ReviewColumns",
    "Row",
    "ToolCall",
    "Verdict",
    "columns_beside_text",
    "columns_unread",
    "count_unread",
    "csv_separator",
    "detect_row_format",
    "iter_rows",
    "label_rows",
    "matching_rows",
    "naming_row",
    "open_text",
    "pair_row",
    "parse_answer",
    "possible_columns",
    "read_example",
    "read_lines",
    "read_question",
    "read_review",
    "read_rows",
    "refusing_row",
    "renamed",
    "renamed_row",
    "same_json",
    "unread_text",
    "where_text",
    "write_rows",
]
