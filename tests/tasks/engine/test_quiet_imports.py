"""What the engine's libraries say at their import of a package that is missing on purpose.

bitsandbytes warns of it only on CPUs with AVX512-BF16; elsewhere there is nothing to hide.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_adapter

SAYS_MORE = """
import logging
import tasks.engine
import bitsandbytes
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something else")
"""


def said(*command: object) -> str:
    """Run a command that must succeed, and give its stderr."""
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stderr


def test_no_package_is_missed_that_would_fetch_code() -> None:
    """Bitsandbytes' warning of the package `kernels` is hidden, and no other of its warnings."""
    assert said(sys.executable, "-c", SAYS_MORE) == "something else\n"


@pytest.mark.slow  # in a new process: some 10 s
def test_a_command_misses_none_either(tiny_base: Path, tmp_path: Path) -> None:
    """A command that loads a base and its adapter has no such line on stderr."""
    adapter = tiny_adapter(tiny_base, tmp_path / "one")
    program = Path(sys.executable).with_name("adapterflow")
    error = said(program, "export", adapter, tmp_path / "merged", "--merged")
    assert "kernels" not in error
