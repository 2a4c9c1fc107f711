"""Programs of this environment, written so that a shell finds them."""

import re
import shutil
import sys
from pathlib import Path


def runnable(command: str) -> str:
    """Write programs of this environment with their path where the shell would not find them."""
    for program in ("mlflow", "prefect"):
        ours = Path(sys.executable).with_name(program)
        if shutil.which(program) != str(ours):
            command = re.sub(rf"(^|\s){program} ", rf"\1{near(ours)} ", command)
    return command


def near(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
