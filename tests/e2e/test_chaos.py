"""Kills at seeded moments, in each step of both flows, lose nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_a_training_survives_kills_in_every_step() -> None:
    """Each killed run resumes to the same bytes, and no completed step runs twice."""
    survived(chaos("--kills=6"))


def test_a_retraining_survives_kills_in_every_step() -> None:
    """Killed anywhere it registers one version, and ends with the same champion and record."""
    survived(chaos("--retraining", "--kills=12"))


def chaos(*options: str) -> dict[str, Any]:
    """Run the program, and give its result."""
    script = Path(__file__).parents[1] / "support/chaos.py"
    done = subprocess.run(
        [sys.executable, str(script), "--seed=1", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def survived(result: dict[str, Any]) -> None:
    """Check that nothing was lost or done twice."""
    assert result["failures"] == []
    assert result["ran_twice"] == 0
    for tally in result["steps"].values():
        assert tally["kills"] >= 1
        assert tally["kills"] == tally["resumed"] == tally["identical"]
