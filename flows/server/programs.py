"""Commands and paths as a user can paste them into a shell."""

import re
import shutil
import sys
from pathlib import Path


def runnable(command: str) -> str:
    """Return a command with the paths of its programs, where the shell would not find ours."""
    for program in ("mlflow", "prefect"):
        ours = Path(sys.executable).with_name(program)
        if shutil.which(program) != str(ours):
            command = re.sub(rf"(^|\s){program} ", rf"\1{near(ours)} ", command)
    return command


def near(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
