"""Folders that are there whole or not at all, with a manifest that is written last."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.records import FileRecord

MANIFEST_FILE = "manifest.json"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a sibling to write to; it becomes the folder, or replaces it, if all went well."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what there is to know of a folder, with the sha256 of each of its files."""
    present = sorted(path for path in folder.iterdir() if path.name != MANIFEST_FILE)
    manifest = {**facts, "files": {path.name: FileRecord.of(path).sha256 for path in present}}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def check_new(folder: Path) -> None:
    """Check that a folder can be written without losing anything.

    Raises:
        UserError: there is something already, or no folder to put it in.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; give another name, or remove it")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"there is no folder {folder.absolute().parent} to write {folder.name} to")
