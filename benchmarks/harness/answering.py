"""The other end of `processes.ask`: a module's main program reads its request and answers."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.messages import Message

Request = TypeVar("Request", bound=Message)


def read_request(kind: type[Request]) -> Request:
    """Read the request whose file the command line names."""
    return kind.model_validate_json(Path(sys.argv[1]).read_text())


def answer(messages: Iterable[Message]) -> None:
    """Write the answers beside the request, one JSON object a line."""
    lines = "".join(message.model_dump_json() + "\n" for message in messages)
    Path(sys.argv[1]).with_suffix(".answers.jsonl").write_text(lines)
