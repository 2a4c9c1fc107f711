"""The audit of the dependencies fails on what nobody explained, and says when it was none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime import home

FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": ""}
KNOWN = {"name": "some", "version": "1.0", "vulns": [FOUND]}
SAFE = {"name": "other", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "exceptions", "status", "told"),
    [
        ([SAFE], "", 0, "audited 1 packages: 0 vulnerabilities"),
        ([SAFE, KNOWN], "", 1, "some 1.0: PYSEC-1: NOT EXPLAINED; fixed in: 1.1"),
        ([SAFE, KNOWN], "# why\nCVE-1 never called", 0, "PYSEC-1: explained: never called"),
        ([SAFE, KNOWN], "CVE-1", 1, "no reason is given for CVE-1"),
        ([SAFE], "CVE-1 never called", 0, "CVE-1 is explained in audit-exceptions.txt but was not"),
        ([SAFE, UNKNOWN], "", 0, "unknown to the vulnerability service: own"),
        ([UNKNOWN], "", 0, "AUDIT NOT DONE: the vulnerability service cannot be reached"),
    ],
)
def test_a_report_is_judged(
    found: list[object], exceptions: str, status: int, told: str, tmp_path: Path
) -> None:
    """Only a vulnerability without a reason fails it; an audit of nothing is not called one."""
    (tmp_path / "report.json").write_text(json.dumps({"dependencies": found}))
    (tmp_path / "exceptions.txt").write_text(exceptions)
    done = subprocess.run(
        [sys.executable, home.CHECKOUT / ".ci/audit.py", "report.json", "exceptions.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert told in done.stdout + done.stderr
