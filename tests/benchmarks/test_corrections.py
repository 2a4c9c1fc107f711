"""A fault in production, its corrections and the retraining that learns them, end to end."""

import json
from pathlib import Path

import pytest
from command_line_runs import run_program

from benchmarks.corrections import main, produced
from tasks.runtime import home


def test_a_week_of_messages_is_new_and_mostly_of_one_kind() -> None:
    """The messages are not the demo's, and so many are about kitchen products as were asked for."""
    week = produced(10, 4)
    assert sum('"kitchen"' in row["messages"][-1]["content"] for row in week) == 10
    assert len({row["messages"][1]["content"] for row in week}) == 14


@pytest.mark.slow
def test_corrected_answers_make_a_challenger_of_the_champion(
    prefect_server: None, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The champion's version is noted with its answers, and the challenger began as that one."""
    out, err = run_program(capsys, main, "--quick", f"--base={tiny_base}")
    (pairs,) = home.outputs().glob("corrected-*/pairs.jsonl")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(rows) == 8
    (version,) = {row["adapter_version"] for row in rows}
    name = pairs.parent.name
    assert version.startswith(f"models:/{name}/1 (sha256 ")
    assert f"answered by {version}: 8" in out
    assert f"begins with models:/{name}/1" in err
    assert "columns not read" not in err
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [line[3] for line in lines[1:]] == [
        *("base", "challenger"),
        *("base", "champion", "challenger"),
    ]
    assert (pairs.parent / "decisions.md").read_text().strip() in out
