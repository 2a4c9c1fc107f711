"""The list of runs that a home's command line started, and which of them it saw end.

It finds runs that were killed before they had a folder, or whose folder is outside the home.
"""

import json
from pathlib import Path

from tasks.runtime import home

_FILE = "runs.jsonl"


def note_start(flow_run_id: str, folder: Path) -> None:
    """Append that a run is started or resumed."""
    _append({"run": flow_run_id, "folder": str(folder)})


def note_end(flow_run_id: str) -> None:
    """Append that a run ended for good: completed, or refused as a user's mistake."""
    _append({"run": flow_run_id, "ended": True})


def unfinished_runs() -> dict[str, Path]:
    """Return the folders of the started runs that were not seen to end, by id, the newest last."""
    runs: dict[str, Path] = {}
    file = home.prefect_store() / _FILE
    for line in file.read_bytes().splitlines() if file.exists() else []:
        entry = _entry(line)
        runs.pop(entry.get("run", ""), None)
        if entry.keys() >= {"run", "folder"}:
            runs[entry["run"]] = Path(entry["folder"])
    return runs


def _entry(line: bytes) -> dict[str, str]:
    """Return what a line notes: nothing if it is incomplete, as after a power failure."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    texts = entry.items() if isinstance(entry, dict) else ()
    return {key: value for key, value in texts if isinstance(value, str)}


def _append(entry: dict[str, object]) -> None:
    file = home.prefect_store() / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        # A power failure can leave a partial line; start a new one.
        opened.seek(max(0, opened.tell() - 1))
        begins = b"" if opened.read() in {b"", b"\n"} else b"\n"
        opened.write(begins + json.dumps(entry).encode() + b"\n")
