"""The runs that a home's command line started, and how it saw them end.

A run that is killed before it has a folder, or whose folder is elsewhere, is found through it.
"""

import json
from pathlib import Path

from tasks.runtime import home

_FILE = "runs.jsonl"


def note_start(flow_run_id: str, folder: Path) -> None:
    """Note that a run begins, or is gone on with."""
    _append({"run": flow_run_id, "folder": str(folder)})


def note_end(flow_run_id: str) -> None:
    """Note that a run completed, or cannot work as it was configured."""
    _append({"run": flow_run_id, "ended": True})


def unended() -> dict[str, Path]:
    """Give the folders of the runs that began and did not end, the one begun last at the end."""
    runs: dict[str, Path] = {}
    file = home.prefect_store() / _FILE
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            said = json.loads(line)
        except ValueError:  # cut short by a loss of power
            continue
        runs.pop(said["run"], None)
        if "folder" in said:
            runs[said["run"]] = Path(said["folder"])
    return runs


def _append(said: dict[str, object]) -> None:
    file = home.prefect_store() / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        # After a line that a loss of power cut short begins a new one.
        opened.seek(max(0, opened.tell() - 1))
        begins = b"" if opened.read() in {b"", b"\n"} else b"\n"
        opened.write(begins + json.dumps(said).encode() + b"\n")
