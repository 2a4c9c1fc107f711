"""The program that tries chat templates, in a process that can be killed; see `template_limits`.

It is started by its path and imports nothing of adapterflow, nor torch. A request is one line of
JSON on stdin; for each of its conversations there is one line of JSON on stdout.
"""

import contextlib
import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Answer requests until stdin is closed, which is when the process that asks ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _tell({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_memory(request["memory_bytes"])
        # SIGALRM stops this process even if the one that asks is gone and can't.
        signal.alarm(int(request["seconds"]) + 5)
        for conversation in request["conversations"]:
            _tell(_tried(render_jinja_template, conversation, request["tokens"]))
        signal.alarm(0)


def _tried(render: Any, conversation: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Return the number of characters that a conversation becomes, or the error's name and text."""
    try:
        (text,), _ = render([conversation["messages"]], **{**tokens, **conversation["options"]})
    except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
        return {"error": type(error).__name__, "text": str(error)[:300]}
    return {"characters": len(text)}


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


def _limit_memory(more_bytes: int) -> None:
    """Limit this process to its present memory and so much more, where the system can (Linux)."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: PTH123, SIM115
        present = pages * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (present + more_bytes, hard))


if __name__ == "__main__":
    main()
