"""The manifest of a folder: what it is, and the sha256 of each of its files."""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.records import FileRecord
from tasks.runtime.atomic_files import write_atomically

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write the folder's manifest: the facts and each file's sha256.

    It is written last, so that a folder with a manifest is complete.
    """
    present = sorted(path for path in folder.iterdir() if path.name != MANIFEST_FILE)
    manifest = {**facts, "files": {path.name: FileRecord.of(path).sha256 for path in present}}
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
