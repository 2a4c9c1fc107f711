"""Commands and paths as a user can paste them into a shell."""

import re
import shlex
import shutil
import sys
from pathlib import Path


def runnable(command: str) -> str:
    """Return a command with the paths of its programs, where the shell would not find ours."""
    # A program is followed by one of its verbs: a quoted path may contain its name, too.
    programs = r"(^|\s)(mlflow|prefect)(?= (?:ui|models|server)\b)"
    return re.sub(programs, lambda found: found[1] + program(found[2]), command)


def program(name: str) -> str:
    """Return a program's name as a shell finds ours: with its path, if that is necessary."""
    ours = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(ours) else shlex.quote(str(near(ours)))


def near(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
