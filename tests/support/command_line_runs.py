"""The command line run in this process or a new one, for tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main as command_line


def run_in_new_process(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does, with its home below a folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("adapterflow"), *map(str, arguments)],
        env={**os.environ, "ADAPTERFLOW_HOME": str(folder / "home")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def run_in_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run the command line here, and give its exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["adapterflow", *map(str, arguments)])
    status, environment = 0, dict(os.environ)
    try:
        command_line.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:  # what it sets for its own process is not for the tests after this one
        os.environ.clear()
        os.environ.update(environment)
    return status, *capsys.readouterr()
