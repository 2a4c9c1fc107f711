"""Plain text is read by paragraphs or files, and compressed files as they were before."""

import gzip
import json
from pathlib import Path

import pytest

from tasks.engine.data.rows.row_sources import read_rows
from tasks.errors import UserError

TEXT = "\ufeffOne line\r\nand one more. \r\n\r\n \n\nÄ second\u2028paragraph.\n\n\n"
PARAGRAPHS = [{"text": "One line\nand one more. "}, {"text": "Ä second\u2028paragraph."}]


def compressed(path: Path, content: bytes, frames: int = 1) -> str:
    """Write a file, compressed as its extension says, in one piece or several."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        import pyarrow as pa

        size = len(content) // frames + 1
        parts = [content[start : start + size] for start in range(0, len(content), size)]
        path.write_bytes(b"".join(pa.compress(one, "zstd", asbytes=True) for one in parts))
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_a_text_is_a_row_a_paragraph(tmp_path: Path, name: str) -> None:
    """Blank lines separate paragraphs; their own line breaks stay."""
    path = tmp_path / name
    if path.suffix == ".txt":
        path.write_bytes(TEXT.encode())
    else:
        compressed(path, TEXT.encode())
    assert read_rows(str(path), "train", None) == PARAGRAPHS


def test_a_text_without_paragraphs_is_a_row_a_line(tmp_path: Path) -> None:
    """Blank lines at its beginning and end separate nothing."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n one\r\ntwo \n\n")
    assert read_rows(str(path), "train", None) == [{"text": " one"}, {"text": "two "}]


def test_a_folder_of_texts_is_a_row_a_file(tmp_path: Path) -> None:
    """The files are documents, in the order of their names, whatever is in them."""
    for name in ("b.txt", "a.TXT"):
        (tmp_path / name).write_bytes(f"{name}\r\n\r\nend\n".encode())
    compressed(tmp_path / "c.txt.gz", b"c")
    (tmp_path / ".hidden").touch()
    rows = read_rows(str(tmp_path), "train", None)
    assert rows == [{"text": "a.TXT\n\nend"}, {"text": "b.txt\n\nend"}, {"text": "c"}]
    (tmp_path / "d.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"d\.txt is empty; .*remove it"):
        read_rows(str(tmp_path), "train", None)
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UserError, match=r"nor one of \.txt files alone; .*rows\.jsonl"):
        read_rows(str(tmp_path), "train", None)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_compressed_file_has_the_same_rows(tmp_path: Path, kind: str, ending: str) -> None:
    """What is in it counts, and a file may consist of several pieces."""
    rows = [{"prompt": f"ä {number}", "completion": "b"} for number in range(500)]
    separator = "\t" if kind == ".tsv" else ","
    lines = [separator.join(one.values()) for one in rows]
    content = {
        ".jsonl": "".join(json.dumps(one) + "\n" for one in rows),
        ".json": json.dumps(rows),
    }.get(kind, "\n".join([separator.join(rows[0]), *lines]))
    path = compressed(tmp_path / f"rows{kind}{ending}", content.encode(), frames=3)
    assert read_rows(path, "train", None) == rows


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("content", [b"text", None], ids=["other bytes", "truncated"])
def test_a_damaged_file_is_named(tmp_path: Path, ending: str, content: bytes | None) -> None:
    """One message, with the file's name, also if the damage is at its end."""
    rows = b'{"text": "a"}\n' * 5
    path = Path(compressed(tmp_path / f"rows.jsonl{ending}", rows))
    path.write_bytes(content or path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"rows\.jsonl\{ending} cannot be read: \S"):
        read_rows(str(path), "train", None)


def test_nulls_that_arrow_adds_are_absent(tmp_path: Path) -> None:
    """Each call keeps the arguments that it was written with, in Parquet as in JSON."""
    from datasets import Dataset
    from pyarrow import Table, parquet

    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": [{"c": 2}]}}]
    rows = [{"calls": [one], "note": None} for one in calls]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        assert read_rows(str(tmp_path / name), "train", None) == rows
