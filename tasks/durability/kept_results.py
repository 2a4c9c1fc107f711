"""Prefect's kept results, written whole: a kill leaves the whole file or none.

Prefect 3.8 opens a result's file and writes into it. One that was cut short would be taken for the
step's record, could not be read, and would fail every retry.
"""

import os
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem


class WholeFiles(LocalFileSystem):
    """A folder whose files are complete wherever they exist."""

    _block_type_name = "Whole Files"
    _block_type_slug = "whole-files"

    def write_path(self, path: str, content: bytes, *, _sync: bool = True) -> str:  # type: ignore[override]
        """Write to a sibling, and rename it once all is on the disk."""
        file = Path(self._resolve_path(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        with new.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
        return str(file)


def keep_results_whole() -> None:
    """Let the current flow run and its steps write their results whole, where these are files."""
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101 - called by the flow
    storage = context.result_store.result_storage
    if type(storage) is LocalFileSystem:
        context.result_store.result_storage = WholeFiles(basepath=storage.basepath)
