"""The look-up for other Pythons says which pins contradict each other, and which are missing."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.runtime import home

ONE, OTHER, THIRD = ("one", "1.0"), ("other", "2.0"), ("third", "3.0")


@pytest.mark.parametrize(
    ("pins", "needs", "status", "told"),
    [
        ([ONE, OTHER], ["Other>=2"], 0, "2 pins have a wheel, 0 contradict another"),
        ([ONE, OTHER], ["other<2"], 1, "one needs other<2, but 2.0 is pinned"),
        ([ONE], ["other"], 0, "needed on this platform and not pinned: other"),
        ([ONE], ["other; python_version >= '3.13'"], 0, "not pinned: other"),
        ([ONE, OTHER], ["other<2; python_version < '3.13'"], 0, "0 contradict"),
        ([ONE, OTHER], ["other<2; extra == 'more'"], 0, "0 contradict"),
        ([ONE, OTHER, THIRD], ["other<2", "third<3"], 1, "2 contradict"),
    ],
)
def test_a_report_is_judged(
    pins: Sequence[tuple[str, str]], needs: Sequence[str], status: int, told: str, tmp_path: Path
) -> None:
    """What a release needs is compared with the pins, as that Python and not as this one."""
    found = [{"metadata": {"name": name, "version": version}} for name, version in pins]
    found[0]["metadata"] |= {"requires_dist": needs}  # type: ignore[dict-item]
    (tmp_path / "report.json").write_text(json.dumps({"install": found}))
    done = subprocess.run(
        [sys.executable, home.CHECKOUT / ".ci/resolve.py", "3.14", "--report", "report.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert told in done.stdout
