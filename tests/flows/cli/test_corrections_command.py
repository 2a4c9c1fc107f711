"""`adapterflow corrections`, as a user meets it."""

import json
from pathlib import Path

import pytest
from command_line_runs import run_in_process

from tasks.records import CorrectionsRecord


def test_corrections_are_written_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal says what became of each row, `--json` the record; a mistake ends with 2."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": "1+1?", "answer": "3", "adapter_version": "a (sha256 0a)", "correction": "2"},
        {"prompt": "2+2?", "answer": "4", "adapter_version": "a (sha256 0a)", "accepted": True},
    ]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("corrections", "answers.jsonl")

    status, out, err = run_in_process(capsys, monkeypatch, *command, "pairs.jsonl")
    assert (status, err) == (0, "")
    assert f"1 pairs from 2 rows: {tmp_path / 'pairs.jsonl'}" in out
    assert "1 corrected, 1 accepted, 0 rejected without a correction" in out
    assert "answered by a (sha256 0a): 2" in out

    status, out, err = run_in_process(
        capsys, monkeypatch, *command, "labels.csv", "--as=labels", "--json"
    )
    assert (status, err) == (0, "")
    assert CorrectionsRecord.model_validate_json(out).num_written == 3

    status, out, err = run_in_process(capsys, monkeypatch, *command, "pairs.jsonl")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "exists" in err
