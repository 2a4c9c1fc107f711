"""The other side of `processes.ask`: a module's main program reads a request and answers it."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO, TypeVar

from benchmarks.harness.messages import Message

Request = TypeVar("Request", bound=Message)


def read_request(kind: type[Request]) -> Request:
    """Return the request in the file that the command line names."""
    return kind.model_validate_json(Path(sys.argv[1]).read_text())


def answer(messages: Iterable[Message]) -> None:
    """Write the answers next to the request, as JSON Lines."""
    lines = "".join(message.model_dump_json() + "\n" for message in messages)
    Path(sys.argv[1]).with_suffix(".answers.jsonl").write_text(lines)


def answers_only() -> TextIO:
    """Return standard output for answers alone; what else is printed goes to standard error."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return kept
