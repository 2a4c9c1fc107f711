"""Read rows from a file, a folder that `datasets` wrote, or the Hub."""

import csv
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config.reading import (
    DATA_SUFFIXES,
    SHOWN_SUFFIXES,
    is_hub_dataset,
    missing_file,
    suffix_of,
)
from tasks.engine.data.rows.arrow_rows import ROWS_AT_ONCE, parquet_rows, rows_of
from tasks.engine.data.rows.json_values import DuplicateKeyError, duplicate_line, parse_json
from tasks.engine.data.rows.reading_errors import reported
from tasks.engine.data.rows.text_files import documents, have_paragraphs, open_text, texts
from tasks.engine.excerpts import listed, reason
from tasks.engine.failures import failure
from tasks.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, object]
# A line that cannot be read is represented by the error that says why.
_Line = Row | UserError

CSV_SUFFIXES = (".csv", ".tsv")
_PLAIN = (".md", ".text")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_FILES_OF_DATASETS = ("state.json", "dataset_info.json", "dataset_dict.json")
_QUOTED = re.compile(r'"[^"]*"')


def read_rows(source: str, split: str, revision: str | None) -> list[Row]:
    """Read all rows of a source into memory, as `iter_rows` does one by one."""
    return list(iter_rows(source, split, revision))


def iter_rows(source: str, split: str, revision: str | None) -> Iterator[Row]:
    """Read the rows of a source one by one, in order; there is at least one.

    Args:
        source: a file, a folder that `datasets` wrote, or a Hub dataset's id.
        split: of a Hub dataset or a `datasets` folder; a file's only split is `train`.
        revision: of a Hub dataset.

    Raises:
        UserError: the source is missing, empty, malformed (the message names the line) or of an
            unknown kind, or has no such split or revision.

    """
    rows = reported(_readable(_lines_of(source, split, revision)), source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source} has no rows; at least one is needed")
    yield first
    yield from rows


def _lines_of(source: str, split: str, revision: str | None) -> Iterator[_Line]:
    path = Path(source).expanduser()
    if is_hub_dataset(source):
        yield from _from_hub(source, split, revision)
    elif revision is not None:
        raise UserError(
            f"revision {revision!r} was given, but {source} is not a Hub dataset; remove "
            "data.revision"
        )
    elif path.is_dir():
        yield from _from_folder(path, split)
    else:
        _require_only_split(source, split, path)
        yield from iter_lines(path)


def read_lines(path: Path) -> list[_Line]:
    """Read a file's rows into memory, as `iter_lines` does one by one."""
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[_Line]:
    """Read a file's rows one by one, with an error in place of each that cannot be read.

    Only a `.json` file, which is a single value, is read into memory at once.

    Raises:
        UserError: the file is missing, empty, of an unknown kind, or not readable at all.
    """
    return reported(_lines_in(path), str(path))


def _lines_in(path: Path) -> Iterator[_Line]:
    if not path.is_file():
        raise UserError(
            f"data file {missing_file(path)}; possible: a file ({SHOWN_SUFFIXES}), a "
            "folder of text files or one written by datasets, or a Hub dataset id (org/name)"
        )
    if not path.name.lower().endswith(DATA_SUFFIXES):
        hint = "; rename plain text to .txt" if path.suffix.lower() in _PLAIN else ""
        raise UserError(
            f"{path} has the extension {path.suffix.lower() or '(none)'}; possible: "
            f"{SHOWN_SUFFIXES}{hint}"
        )
    suffix = suffix_of(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; at least one row is needed")
    if suffix == ".parquet":
        yield from parquet_rows(path)
    elif suffix == ".json":
        text = "".join(_text_lines(path, newline=""))
        _check_text(text, path, 1)
        yield from _json_rows(text, path)
    elif suffix == ".txt":
        by_line = not have_paragraphs(_text_lines(path, newline=None))
        yield from _text_rows(texts(_text_lines(path, newline=None), by_line=by_line), path)
    elif suffix in CSV_SUFFIXES:
        # newline="" keeps the line breaks within quoted cells as they are.
        yield from _csv_rows(_text_lines(path, newline=""), path)
    else:
        # Lines end in "\n" only: U+2028 and the like, and "\r" between values, may be within one.
        yield from _jsonl_rows(_text_lines(path, newline="\n"), path)


def csv_separator(text: str, path: Path) -> str:
    """Return the separator of a CSV file's cells, by its first line: a comma, `;` or a tab.

    If there is a comma (in a `.tsv` file a tab) it is the separator, as column names rarely contain
    one.

    Args:
        text: the file's first line, or more of it.
        path: of the file.

    Raises:
        UserError: the line does not have the usual separator, but both of the others.
    """
    names = _QUOTED.sub("", re.split("[\r\n]", text, maxsplit=1)[0])
    usual = "\t" if suffix_of(path) == ".tsv" else ","
    found = [usual] if usual in names else [one for one in ",;\t" if one in names]
    if len(found) > 1:
        raise UserError(
            f"{path}, line 1: the columns could be separated by {_SEPARATORS[found[0]]} or by "
            f"{_SEPARATORS[found[1]]}; save the file with commas"
        )
    return found[0] if found else usual


def _readable(lines: Iterable[_Line]) -> Iterator[Row]:
    for line in lines:
        if isinstance(line, UserError):
            raise line
        yield line


def _require_only_split(source: str, split: str, path: Path) -> None:
    if split != "train":
        kind = "a single dataset" if path.is_dir() else "a file"
        raise UserError(
            f"split {split!r} was given, but {source} is {kind}, which has no splits; name the "
            "held-out rows with data.eval, or hold some out with data.eval_fraction"
        )


def _text_lines(path: Path, newline: str | None) -> Iterator[str]:
    """Read a file's lines; a byte that is not UTF-8 becomes a surrogate, see `_check_text`."""
    try:
        with open_text(path, newline) as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:  # the latter two of compressed files
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def _check_text(text: str, path: Path, line: int) -> None:
    """Check that a text, which begins in this line of the file, was valid UTF-8.

    Raises:
        UserError: it was not; the message names the line.
    """
    if text.isascii():
        return
    try:
        text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError as error:
        line += text.encode(errors="surrogateescape")[: error.start].count(b"\n")
        raise UserError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8"
        ) from error


def _jsonl_rows(lines: Iterable[str], path: Path) -> Iterator[_Line]:
    for number, ended in enumerate(lines, start=1):
        line = ended.removesuffix("\n")
        if line.strip():
            where = f"{path}, line {number}"
            try:
                _check_text(line, path, number)
                yield _object(_json(line, path, number), where)
            except UserError as error:
                yield error


def _text_rows(found: Iterable[tuple[int, str]], path: Path) -> Iterator[_Line]:
    for number, text in found:
        try:
            _check_text(text, path, number)
            yield {"text": text}
        except UserError as error:
            yield error


def _document_rows(files: Iterable[Path]) -> Iterator[Row]:
    for path in files:
        text = "".join(_text_lines(path, newline=None))
        _check_text(text, path, 1)
        if not text.strip():
            raise UserError(f"{path} is empty; each file of a folder of texts is a row: remove it")
        yield {"text": text.rstrip("\n")}


def _json_rows(text: str, path: Path) -> list[Row]:
    content = _json(text, path)
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(
                f"{path} is an object with {len(lists)} lists ({listed(content) or 'no keys'}); "
                "a JSON file must be a list of objects, or an object with one such list; to keep "
                "other values out, write one object per line into a .jsonl file"
            )
        content = lists[0]
    if not isinstance(content, list):
        raise UserError(f"{path} is a {_kind(content)}; a JSON file must be a list of objects")
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(content, start=1)]


def _json(text: str, path: Path, first_line: int | None = None) -> object:
    """Parse the text of a file, or of its line with the number `first_line`."""
    where = f"{path}, line {first_line}" if first_line else str(path)
    try:
        return parse_json(text)
    except DuplicateKeyError as error:
        line = (first_line or 1) + duplicate_line(text) - 1
        raise UserError(
            f"{path}, line {line}: {error}; keep one of the two, or give each a name of its own"
        ) from error
    except json.JSONDecodeError as error:
        position = f"column {error.colno}"
        if error.lineno > 1:
            position = f"line {error.lineno}, {position}"
        raise UserError(f"{where}: invalid JSON: {error.msg} at {position}") from error
    except RecursionError as error:
        raise UserError(f"{where}: the JSON is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{where}: the JSON can't be read: {error}") from error


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f'{where}: a row must be an object such as {{"prompt": …, "completion": …}}, but this '
            f"is a {_kind(value)}"
        )
    return value


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null", dict: "object"}
    return names.get(type(value), "number")


def _csv_rows(lines: Iterable[str], path: Path) -> Iterator[_Line]:
    # Some documents are longer than the default limit of 128 KiB per cell.
    csv.field_size_limit(sys.maxsize)
    lines = iter(lines)
    first = next(lines, "")
    separator = csv_separator(first, path)
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    try:
        columns = next(reader, [])
        _check_text("".join(columns), path, 1)
        if len(set(columns)) != len(columns) or not all(columns):
            raise UserError(
                f"{path}, line 1: the column names {listed(columns)} must be distinct and "
                "non-empty; the first line of a CSV file names each column once"
            )
        for cells in reader:
            try:
                _check_text("".join(cells).replace("\n", ""), path, reader.line_num)
            except UserError as error:
                yield error
                continue
            if cells and len(cells) != len(columns):
                yield UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the first line names "
                    f"{len(columns)} columns, separated by {_SEPARATORS[separator]}; put cells "
                    "that contain a separator or a line break in quotes"
                )
            elif cells:
                yield dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: invalid CSV: {error}") from error


def _from_folder(path: Path, split: str) -> Iterator[_Line]:
    if files := documents(path):
        _require_only_split(str(path), split, path)
        return _document_rows(files)
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # its JSON files may have any shape, and datasets checks none
        raise UserError(_unfit_folder(path, error)) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{path} has no split {split!r}; its splits: {', '.join(loaded)}")
        loaded = loaded[split]
    else:
        _require_only_split(str(path), split, path)
    return _plain_rows(loaded, str(path))


def _unfit_folder(path: Path, error: Exception) -> str:
    if any((path / name).exists() for name in _FILES_OF_DATASETS):
        return (
            f"{path} is a folder of datasets that can't be read: {reason(error)}; write it again "
            "with save_to_disk"
        )
    files = [one.name for one in sorted(path.iterdir()) if one.name.endswith(DATA_SUFFIXES)]
    hint = f"; did you mean one of its files: {listed(files)}?" if files else ""
    return (
        f"{path} is neither a folder that datasets' save_to_disk has written, nor one of .txt "
        f"files alone{hint}"
    )


def _plain_rows(loaded: "Dataset", source: str) -> Iterator[_Line]:
    """Yield a memory-mapped dataset's rows as `to_list` would, reading a batch at a time."""
    return rows_of(loaded.with_format("arrow").iter(batch_size=ROWS_AT_ONCE), source)


def _from_hub(source: str, split: str, revision: str | None) -> Iterator[_Line]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    asked = f"Hub dataset {source}" + (f" at revision {revision}" if revision else "")
    try:
        loaded = datasets.load_dataset(source, split=split, revision=revision)
    except DatasetNotFoundError as error:
        raise UserError(
            f"{asked} was not found, and there is no file or folder of this name; check the id and "
            "the revision, and set HF_TOKEN for a private dataset"
        ) from error
    except (OSError, ValueError, DatasetsError) as error:
        raise failure(
            error,
            f"{asked}, split {split!r} could not be loaded: {reason(error)}; check "
            "data.train_split and data.eval_split, and the connection to the Hub, or give a local "
            "file",
        ) from error
    return _plain_rows(loaded, source)
