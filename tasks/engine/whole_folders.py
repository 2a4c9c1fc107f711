"""Folders that are complete or not there, whatever happens while they are written.

Their manifest is written last, and names each file's sha256.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import AdapterflowError, UserError
from tasks.records import FileRecord

MANIFEST_FILE = "manifest.json"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a sibling to write to; it takes the folder's place once all went well.

    After an error nothing is left of it, and an older folder in that place is as it was.

    Raises:
        AdapterflowError: the disk is full, or the place is not writable.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    _put_back(old, folder)
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
    except BaseException:
        _put_back(old, folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    """Undo the first half of an exchange that was interrupted, now or in an earlier process."""
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say of an error in writing what was written where, and how much room there is.

    Raises:
        AdapterflowError: writing failed.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritable(place, error) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # how torch 2.13 tells of a write that failed
            raise
        raise _unwritable(place, error) from error


def _unwritable(place: Path, error: Exception) -> AdapterflowError:
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return AdapterflowError(
        f"{place} can't be written: {error} ({free:,.0f} MB are free there); make room or give the "
        "right to write, then go on with the run"
    )


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
