"""Audit the pinned dependencies for known vulnerabilities: `make audit`.

Exit status 0: none that `.ci/audit-exceptions.txt` does not explain, or the vulnerability service
can't be reached, which the last line says. 1: there are some, or pip-audit itself failed.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_NOT_DONE = "AUDIT NOT DONE: the vulnerability service can't be reached"
_UNREACHABLE = ("ConnectionError", "Failed to establish", "Max retries", "timed out", "503", "502")


def main() -> int:
    """Audit, or judge the report of pip-audit in a file that is given; return the exit status."""
    given = [Path(argument) for argument in sys.argv[1:]]
    report = given[0].read_text(encoding="utf-8") if given else _report()
    if report is None:
        print(_NOT_DONE)
        return 0
    exceptions = explained(given[1] if given[1:] else _HERE / "audit-exceptions.txt")
    return judged(json.loads(report)["dependencies"], exceptions)


def _report() -> str | None:
    """Ask the service about each pinned release; return None where it can't be reached.

    Raises:
        SystemExit: pip-audit failed otherwise.
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
    """Read the exceptions: a line each, the vulnerability's id and why it does not matter here.

    Raises:
        SystemExit: an id has no reason.
    """
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    if unexplained := [name for name, _, reason in pairs if not reason.strip()]:
        raise SystemExit(f"{file}: {', '.join(unexplained)} has no reason")
    return {name: reason.strip() for name, _, reason in pairs}


def judged(dependencies: list[Mapping[str, Any]], exceptions: Mapping[str, str]) -> int:
    """Print what was found; return 1 if something is not explained.

    pip-audit 2.10 reports success also where the service knew none of the packages.
    """
    audited = [one for one in dependencies if "skip_reason" not in one]
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if skipped and not audited:
        print(f"{_NOT_DONE}: it answered for none of the {len(skipped)} packages")
        return 0
    if skipped:
        print(f"not known to the vulnerability service: {', '.join(skipped)}")
    found = [(one, vulnerability) for one in audited for vulnerability in one["vulns"]]
    open_ones, used = 0, set()
    for package, vulnerability in found:
        names = {vulnerability["id"], *vulnerability.get("aliases", ())}
        reason = next((exceptions[name] for name in names if name in exceptions), None)
        used |= names
        open_ones += reason is None
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
        told = f"explained: {reason}" if reason else f"NOT EXPLAINED; fixed in: {fixed}"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}: {told}")
    for name in sorted(exceptions.keys() - used):
        print(f"{name} is explained in audit-exceptions.txt and was not found; remove it")
    print(f"audited {len(audited)} packages: {len(found)} vulnerabilities, {open_ones} unexplained")
    return 1 if open_ones else 0


if __name__ == "__main__":
    sys.exit(main())
