"""Look up whether the pinned releases fit other Pythons: `make resolve`.

For each version of Python, pip is asked for a wheel of every pin in `constraints.txt` for this
platform, and the wheels' own requirements are compared with the pins. Nothing is installed or run,
and that Python need not be at hand. The few releases that come as source only are left out, as pip
would have to run it. Exit status 1: a pin has no wheel, or contradicts another.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
_SOURCE_ONLY = {"rouge-score", "sqlitedict", "word2number"}
"""Pure Python, which lm_eval needs."""


def main() -> int:
    """Print what fits each version given, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 3.14")
    parser.add_argument("--report", type=Path, help="a report of pip's to read instead of asking")
    given = parser.parse_args()
    statuses = [_looked_up(version, given.report) for version in given.versions]
    return max(statuses)


def _looked_up(version: str, report: Path | None) -> int:
    text = report.read_text(encoding="utf-8") if report else _report(version)
    if text is None:
        return 1
    return judged(version, json.loads(text)["install"])


def _report(version: str) -> str | None:
    """Return pip's report on a wheel for each pin; print why and return None if one has none."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(_with_wheels(_CONSTRAINTS.read_text(encoding="utf-8"))))
        words = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        words += ["--only-binary=:all:", f"--python-version={version}", f"--target={folder}"]
        words += [f"--requirement={pins}", f"--report={folder}/report.json"]
        command = [sys.executable, "-m", "pip", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return (Path(folder) / "report.json").read_text(encoding="utf-8")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    print(f"Python {version}: a pin has no wheel\n" + "\n".join(errors or [done.stderr]))
    return None


def _with_wheels(constraints: str) -> Iterator[str]:
    for line in constraints.splitlines(keepends=True):
        if canonicalize_name(line.partition("==")[0]) not in _SOURCE_ONLY:
            yield line


def judged(version: str, found: list[Mapping[str, Any]]) -> int:
    """Print which requirements of the pinned releases the pins don't meet; return 1 if any.

    A release that only some machines need, such as CUDA's libraries, may have no pin.
    """
    metadata = [one["metadata"] for one in found]
    pins = {canonicalize_name(one["name"]): one["version"] for one in metadata}
    needs = [(one["name"], need) for one in metadata for need in _needs(one, version)]
    wrong = [
        f"{name} needs {need}, but {pin} is pinned"
        for name, need in needs
        if (pin := pins.get(canonicalize_name(need.name)))
        and not need.specifier.contains(pin, prereleases=True)
    ]
    needed = {canonicalize_name(need.name) for _, need in needs}
    unpinned = sorted(needed - pins.keys() - _SOURCE_ONLY)
    print(f"Python {version}: {len(pins)} pins have a wheel, {len(wrong)} contradict another")
    if unpinned:
        print(f"  needed on this platform and not pinned: {', '.join(unpinned)}")
    print("".join(f"  {line}\n" for line in wrong), end="")
    return 1 if wrong else 0


def _needs(metadata: Mapping[str, Any], version: str) -> Iterator[Requirement]:
    """Yield what a release needs with that Python on this platform, without its extras."""
    python = {"python_version": version, "python_full_version": f"{version}.0", "extra": ""}
    for text in metadata.get("requires_dist", ()):
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate(python):
            yield need


if __name__ == "__main__":
    sys.exit(main())
