"""Equal rows come from every kind of source; what is no row is refused with its place."""

import csv
import json
from pathlib import Path

import pytest

from tasks.engine.data.rows.row_sources import read_rows
from tasks.errors import UserError

ROWS: list[dict[str, object]] = [
    {"prompt": 'say "hi", twice', "completion": "hi\nhi"},
    {"prompt": "ä\u2028ö", "completion": " 日本 "},
]


def written(folder: Path, name: str) -> str:
    """Write `ROWS` in the format that the extension tells."""
    path = folder / name
    match path.suffix:
        case ".jsonl":
            lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
            path.write_text("\ufeff" + "\r\n\r\n".join(lines) + "\n\n", encoding="utf-8")
        case ".json":
            content = {"version": 1, "data": ROWS} if "object" in name else ROWS
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        case ".csv":
            with path.open("w", encoding="utf-8-sig", newline="") as file:
                writer = csv.DictWriter(file, list(ROWS[0]))
                writer.writeheader()
                writer.writerows(ROWS)
        case ".parquet":
            from pyarrow import Table, parquet

            parquet.write_table(Table.from_pylist(ROWS), path)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "object.json", "a.csv", "a.parquet"])
def test_all_files_give_the_same_rows(tmp_path: Path, name: str) -> None:
    """Byte-order marks, blank lines and line breaks within cells change no row."""
    assert read_rows(written(tmp_path, name), "train", None) == ROWS


def test_a_datasets_folder_gives_its_splits(tmp_path: Path) -> None:
    """A saved Dataset is one split, a saved DatasetDict has those of its names."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "two")
    assert read_rows(str(tmp_path / "one"), "train", None) == ROWS
    assert read_rows(str(tmp_path / "two"), "test", None) == ROWS[1:]
    with pytest.raises(UserError, match="no split 'dev'; its splits: train, test"):
        read_rows(str(tmp_path / "two"), "dev", None)
    with pytest.raises(UserError, match="is a single dataset, which has no splits"):
        read_rows(str(tmp_path / "one"), "test", None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"line 3: invalid JSON: .* column 1"),
        (
            "a.jsonl",
            b'{"text": "a"}\n["b"]\n',
            r"line 2: a row must be an object .* this is a list",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"not UTF-8 text \(line 2: "),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "line 1: the JSON can't be read: Exceeds"),
        ("a.json", b'[{"text":\n "\xff"}]', r"not UTF-8 text \(line 2: "),
        ("a.csv", b"text\na\n\xff\n", r"not UTF-8 text \(line 3: "),
        ("a.csv", b"t\xff\na\n", r"not UTF-8 text \(line 1: "),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'[\n{"text": }]', r"invalid JSON: .* line 2, column 10"),
        ("a.json", b'[{"text": "a"}, 3]', "row 2: .* this is a number"),
        ("a.json", b'{"train": [], "test": []}', r"an object with 2 lists \(train, test\)"),
        ("a.json", b'"text"', "is a string"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "line 3: 1 cells, but .* 2 columns"),
        ("a.csv", b"text,text\na,b\n", "line 1: the column names text, text"),
        ("a.csv", b'text\n"a"b\n', "line 2: invalid CSV"),
        ("a.csv", b"text\n", "has no rows"),
        ("a.csv", b"prompt;completion\tx\na;b\tc\n", "separated by semicolons or by tabs"),
        ("a.csv", b"prompt;completion\na;b;c\n", "line 2: 3 cells, .* 2 columns, .* semicolons"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b", "text": "c"}\n',
            "line 2: the key 'text' is given",
        ),
        ("a.jsonl", b'{"m": [{"n": 1, "n": 2}]}\n', "line 1: the key 'n' is given twice"),
        (
            "a.json",
            b'[{"n": {"n": 1}},\n {"n": "n",\n "\\u006e": 2}]',
            "line 3: the key 'n' is given",
        ),
        ("a.parquet", b"text", "not a readable Parquet file"),
        ("a.md", b"text", r"extension \.md; possible: \.jsonl, .*rename plain text to \.txt"),
        ("a.txt", b"a\n\nb\n\xff\n", r"not UTF-8 text \(line 4: "),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The message names the file, the place in it and what is wrong."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(str(tmp_path / name), "train", None)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt;completion\na, b;"c;"\n'),
        ("a.csv", "prompt\tcompletion\na, b\tc;\n"),
        ("a.tsv", "prompt\tcompletion\na, b\tc;\n"),
        ("a.tsv", 'prompt,completion\n"a, b",c;\n'),
        ("a.csv", '"prompt",completion\n"a, b",c;\n'),
    ],
)
def test_the_first_line_tells_what_separates_cells(tmp_path: Path, name: str, content: str) -> None:
    """Spreadsheets save a table with semicolons or tabs where commas are part of numbers."""
    (tmp_path / name).write_text(content)
    rows = read_rows(str(tmp_path / name), "train", None)
    assert rows == [{"prompt": "a, b", "completion": "c;"}]


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """A slip in a name is answered with the right one, a missing folder with its name."""
    written(tmp_path, "rows.jsonl")
    with pytest.raises(UserError, match=r"row\.jsonl does not exist; did you mean .*rows\.jsonl\?"):
        read_rows(str(tmp_path / "row.jsonl"), "train", None)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match=r"b\.jsonl does not exist(?!; did)"):
        read_rows(str(tmp_path / "b.jsonl"), "train", None)
    with pytest.raises(UserError, match="neither does the folder"):
        read_rows(str(tmp_path / "data" / "rows.jsonl"), "train", None)


def test_a_plain_folder_is_answered_with_its_files(tmp_path: Path) -> None:
    """A folder that `datasets` has not written is no source, but its files may be."""
    written(tmp_path, "rows.jsonl")
    with pytest.raises(UserError, match=r"did you mean one of its files: rows\.jsonl"):
        read_rows(str(tmp_path), "train", None)


@pytest.mark.parametrize(("split", "revision"), [("test", None), ("train", "main")])
def test_a_file_has_neither_splits_nor_revisions(
    tmp_path: Path, split: str, revision: str | None
) -> None:
    """A setting that would be without effect is refused."""
    with pytest.raises(UserError, match=r"has no splits|remove data\.revision"):
        read_rows(written(tmp_path, "rows.jsonl"), split, revision)


def test_an_unreachable_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the message says which dataset was asked for and what else to give."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"Hub dataset org/absent at revision v1, .*a local file"):
        read_rows("org/absent", "train", "v1")
