"""The command line run in this process, for tests."""

import os
import sys

import pytest

from flows import command_line


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
