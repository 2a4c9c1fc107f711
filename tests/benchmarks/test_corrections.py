"""A fault in production, its corrections and the retraining that learns them, end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.corrections import produced

CHECKOUT = Path(__file__).parents[2]


def test_a_week_of_messages_is_new_and_mostly_of_one_kind() -> None:
    """The messages are not the demo's, and so many are about kitchen products as were asked for."""
    week = produced(10, 3, 4)
    tickets = [row["messages"][-1]["content"] for row in week]
    assert sum('"kitchen"' in ticket for ticket in tickets) == 10
    assert 3 <= sum('"furniture"' in ticket for ticket in tickets) < 7
    assert len({row["messages"][1]["content"] for row in week}) == 17


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "form", "num_rows"), [("dpo", "pairs", 8), ("kto", "labels", 16)]
)
def test_corrected_answers_make_a_challenger_of_the_champion(
    tiny_base: Path, tmp_path: Path, objective: str, form: str, num_rows: int
) -> None:
    """The champion's version is noted with its answers, and the challenger began as that one."""
    options = ["--quick", f"--base={tiny_base}", f"--objective={objective}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.corrections", *options],
        cwd=CHECKOUT,
        env={**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    learned = next((tmp_path / "home" / "outputs").glob(f"corrected-*/{form}.jsonl"))
    rows = [json.loads(line) for line in learned.read_text().splitlines()]
    assert len(rows) == num_rows
    (version,) = {row["adapter_version"] for row in rows}
    name = learned.parent.name
    assert version.startswith(f"models:/{name}/1 (sha256 ")
    assert f"answered by {version}: 8" in done.stdout
    assert f"begins with models:/{name}/1" in done.stderr
    assert "columns not read" not in done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line[3] for line in lines[1:]] == [
        *("base", "challenger"),
        *("base", "champion", "challenger"),
    ]
    assert (learned.parent / "decisions.md").read_text().strip() in done.stdout
