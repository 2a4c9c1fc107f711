"""The comparison of one process with two: a line for each, and how far the results are apart."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.processes import main


@pytest.mark.slow
def test_two_processes_are_measured_beside_one(tiny_base: Path, tmp_path: Path) -> None:
    """Both have rates and memory, of each process; in float32 losses and weights are equal."""
    given = ["--base", str(tiny_base), "--dtype", "float32", "--steps", "2", "--repeats", "1"]
    done = CliRunner().invoke(main, [*given, "--output", str(tmp_path)], catch_exceptions=False)
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    alone, together = lines[2:]
    assert [alone[0].strip(), together[0].strip()] == ["1", "2"]
    assert [cells[-1].count(",") for cells in (alone, together)] == [0, 1]
    differences = re.search(r"at most (\S+) of the loss, weights by (\S+);", done.stdout)
    assert differences
    assert all(float(one) < 1e-4 for one in differences.groups())
