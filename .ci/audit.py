"""Audit the pinned dependencies for known vulnerabilities: `make audit`.

Exit status 0: every vulnerability found is explained in `.ci/audit-exceptions.txt`, or the
vulnerability service cannot be reached, as the last line then says. 1: one is not explained, or
pip-audit itself failed.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_DONE = "AUDIT NOT DONE: the vulnerability service cannot be reached"
_UNREACHABLE = ("ConnectionError", "Failed to establish", "Max retries", "timed out", "503", "502")


def main() -> int:
    """Run pip-audit, or read its report from a given file, and return the exit status."""
    given = [Path(argument) for argument in sys.argv[1:]]
    report = given[0].read_text(encoding="utf-8") if given else _report()
    if report is None:
        print(_NOT_DONE)
        return 0
    exceptions = explained(given[1] if given[1:] else _HERE / "audit-exceptions.txt")
    return judged(json.loads(report)["dependencies"], exceptions)


def _report() -> str | None:
    """Return pip-audit's report on the pinned releases, None if the service cannot be reached.

    Raises:
        SystemExit: pip-audit failed for another reason.
    """
    words = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
    constraints = _HERE.parent / "constraints.txt"
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(constraints),
        *words,
        "--timeout=15",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.stdout.lstrip().startswith("{"):
        return done.stdout
    if any(sign in done.stderr for sign in _UNREACHABLE):
        return None
    raise SystemExit(f"pip-audit failed:\n{done.stderr}")


def explained(file: Path) -> dict[str, str]:
    """Return the exceptions of a file: why a vulnerability does not matter here, by its id.

    Raises:
        SystemExit: an id has no reason.
    """
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    if unexplained := [name for name, _, reason in pairs if not reason.strip()]:
        raise SystemExit(f"{file}: no reason is given for {', '.join(unexplained)}")
    return {name: reason.strip() for name, _, reason in pairs}


def judged(dependencies: list[Mapping[str, Any]], exceptions: Mapping[str, str]) -> int:
    """Print the vulnerabilities; return 1 if one is not explained, else 0.

    pip-audit 2.10 also reports success when the service knew none of the packages.
    """
    audited = [one for one in dependencies if "skip_reason" not in one]
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if skipped and not audited:
        print(f"{_NOT_DONE}: it knew none of the {len(skipped)} packages")
        return 0
    if skipped:
        print(f"unknown to the vulnerability service: {', '.join(skipped)}")
    found = [(one, vulnerability) for one in audited for vulnerability in one["vulns"]]
    open_ones, used = 0, set()
    for package, vulnerability in found:
        names = {vulnerability["id"], *vulnerability.get("aliases", ())}
        reason = next((exceptions[name] for name in names if name in exceptions), None)
        used |= names
        open_ones += reason is None
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
        verdict = f"explained: {reason}" if reason else f"NOT EXPLAINED; fixed in: {fixed}"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}: {verdict}")
    for name in sorted(exceptions.keys() - used):
        print(f"{name} is explained in audit-exceptions.txt but was not found; remove it")
    print(f"audited {len(audited)} packages: {len(found)} vulnerabilities, {open_ones} unexplained")
    return 1 if open_ones else 0


if __name__ == "__main__":
    sys.exit(main())
