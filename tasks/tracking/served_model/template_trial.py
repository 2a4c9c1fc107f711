"""Try a chat template in a process with limits before it renders prompts in this one."""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

_TRIAL = """
import contextlib, json, os, signal, sys
from transformers.utils.chat_template_utils import render_jinja_template

asked = json.load(sys.stdin)
with contextlib.suppress(ImportError, OSError, ValueError):
    import resource
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
signal.alarm(5)
for turns in asked["conversations"]:
    try:
        (text,), _ = render_jinja_template([turns], **asked["options"])
    except MemoryError:
        sys.exit("takes more than 1 GB of memory")
    except Exception:
        continue
    if len(text) > 4_000_000:
        sys.exit(f"writes {len(text):,} characters for a short conversation")
"""
"""Renders short conversations within limits of time and memory, in a process of its own."""
_TRIAL_SECONDS = 120  # with the imports
_TRIED = "ADAPTERFLOW_TRIED_TEMPLATES"
"""The variable with the sha256 of what was tried: this package is imported anew for each model."""


def check_template(tokenizer: Any) -> None:  # noqa: ANN401
    """Check that the chat template ends: it is a program, and nothing interrupts one in here.

    Raises:
        ValueError: it takes too much time or memory, or writes too much.
    """
    if tokenizer.chat_template is None:
        return
    question = {"role": "user", "content": "What is the capital of France?"}
    conversations = [[question], [question, {"role": "assistant", "content": "Paris."}, question]]
    options = {**tokenizer.special_tokens_map, "chat_template": tokenizer.get_chat_template()}
    options["add_generation_prompt"] = True
    asked = json.dumps({"conversations": conversations, "options": options}, default=str)
    key = hashlib.sha256(asked.encode()).hexdigest()
    if key in os.environ.get(_TRIED, ""):
        return
    command = [sys.executable, "-P", "-c", _TRIAL]
    done = subprocess.run(  # noqa: S603 - our own program
        command, input=asked, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or "does not end within 5 s"
        raise ValueError(f"the chat template of {tokenizer.name_or_path} {reason}")
    os.environ[_TRIED] = f"{os.environ.get(_TRIED, '')} {key}"
