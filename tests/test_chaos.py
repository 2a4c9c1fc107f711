"""A dozen kills at seeded moments, two in each step, lose nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_survives_kills_in_every_step() -> None:
    """Each killed run resumes to the same bytes, and no completed step runs twice."""
    script = Path(__file__).with_name("chaos.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "12", "--seed", "1", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert result["ran_twice"] == 0
    for tally in result["steps"].values():
        assert tally["kills"] >= 2
        assert tally["kills"] == tally["resumed"] == tally["identical"]
