"""Chat templates within limits of time, memory and size.

A template is a program that comes with a model. Jinja2's sandbox keeps it from files and networks,
but bounds nothing: it may loop forever or write gigabytes, and Python can't interrupt a thread. So
a template is first tried in a process of its own, on conversations of the common shapes and on some
of the rows that it will render: the first ones and the longest.
"""

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import AdapterflowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 5.0
"""The most that a template may take for the conversations that it is tried on."""
MEMORY_BYTES = 1 << 30
"""The most memory that it may take."""
_CHARACTERS = 4_000_000
_TIMES_LONGER = 20
"""A text may have `_CHARACTERS` characters, and `_TIMES_LONGER` for each of the conversation's."""
_STARTING_SECONDS = 120.0
_PROGRAM = Path(__file__).with_name("template_process.py")

Turns = Sequence[Mapping[str, Any]]

_USER = {"role": "user", "content": "What is the capital of France?"}
_TRIED: tuple[tuple[str, Turns], ...] = (
    ("a user's message", [_USER]),
    ("a system and a user's message", [{"role": "system", "content": "Be brief."}, _USER]),
    (
        "a conversation of three messages",
        [_USER, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Why?"}],
    ),
)
_known: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Trial:
    """A conversation that a template is tried on."""

    where: str
    """What it is, in messages, such as `rows.jsonl, row 3`."""
    turns: Turns
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `apply_chat_template`, such as `tools`."""


def render(tokenizer: "PreTrainedTokenizerBase", turns: Turns, **options: Any) -> str:  # noqa: ANN401
    """Render a conversation by the tokenizer's chat template, which is tried before its first use.

    Args:
        tokenizer: with the template.
        turns: the messages as the template expects them.
        options: of `apply_chat_template`, such as `add_generation_prompt` and `tools`.

    Raises:
        UserError: the template exceeds a limit. Whatever else it raises, this raises, too.
    """
    check_template(tokenizer, **options)
    text = str(
        tokenizer.apply_chat_template([dict(one) for one in turns], tokenize=False, **options)
    )
    if len(text) > _CHARACTERS and len(text) > (most := _most_characters(turns, options)):
        raise _too_long(tokenizer, len(text), most)
    return text


def check_template(tokenizer: "PreTrainedTokenizerBase", **options: Any) -> None:  # noqa: ANN401
    """Try the tokenizer's chat template on conversations of the common shapes, once a process.

    Raises:
        UserError: it exceeds a limit, or is not a template.
    """
    plain = {name: value for name, value in options.items() if name not in ("tools", "documents")}
    template = _template(tokenizer, options)
    key = (template or "", json.dumps(plain, sort_keys=True, default=str))
    if template is None or key in _known:
        return
    try_template(tokenizer, [Trial(where, turns, plain) for where, turns in _TRIED])
    _known.add(key)


def try_template(tokenizer: "PreTrainedTokenizerBase", trials: Iterable[Trial]) -> None:
    """Try the tokenizer's chat template on conversations.

    A template may refuse a conversation: that is reported where the row is rendered.

    Raises:
        UserError: it exceeds a limit of time, memory or size with one of them, or it can't be
            compiled.
    """
    wanted = [one for one in trials if _template(tokenizer, one.options) is not None]
    with _LOCK:
        found = list(_CHILD.answers(_request(tokenizer, wanted)))
    for one, answer in zip(wanted, found, strict=False):  # there are fewer if one took too much
        _check(tokenizer, one, answer)


def start() -> None:
    """Start the process that tries templates, without waiting for it: its imports take seconds."""
    with _LOCK:
        _CHILD.start()


def template_file(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return where the tokenizer's chat template is, for messages."""
    folder = Path(tokenizer.name_or_path)
    if not tokenizer.name_or_path or not folder.is_dir():
        return f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
    jinja = folder / "chat_template.jinja"
    return str(jinja) if jinja.is_file() else f"{folder / 'tokenizer_config.json'}: chat_template"


def _template(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> str | None:
    """Return the template that is used with these options; None if there is not exactly one."""
    try:
        return tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))
    except ValueError:  # of several named ones, or none; `choose_template` tells
        return None


def _request(tokenizer: "PreTrainedTokenizerBase", trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "seconds": SECONDS,
        "memory_bytes": MEMORY_BYTES,
        "tokens": dict(tokenizer.special_tokens_map),
        "conversations": [
            {
                "messages": [*one.turns],
                "options": {**one.options, "chat_template": _template(tokenizer, one.options)},
            }
            for one in trials
        ],
    }


def _most_characters(turns: Turns, options: Mapping[str, Any]) -> int:
    given = json.dumps([[*turns], options.get("tools")], ensure_ascii=False, default=str)
    return _CHARACTERS + _TIMES_LONGER * len(given)


def _check(
    tokenizer: "PreTrainedTokenizerBase", trial: Trial, answer: Mapping[str, Any] | str
) -> None:
    if isinstance(answer, str):
        raise UserError(f"{template_file(tokenizer)} {answer} for {trial.where}; {_REMEDY}")
    if answer.get("error") == "MemoryError":
        limit = f"takes more than {MEMORY_BYTES / 1e9:.0f} GB of memory"
        raise UserError(f"{template_file(tokenizer)} {limit} for {trial.where}; {_REMEDY}")
    if answer.get("error") == "TemplateSyntaxError":
        raise UserError(
            f"{template_file(tokenizer)} is not a template: {answer['text']}; {_REMEDY}"
        )
    length, most = answer.get("characters", 0), _most_characters(trial.turns, trial.options)
    if length > most:
        raise _too_long(tokenizer, length, most, trial.where)


_REMEDY = "correct the template, or set data.template to plain"


def _too_long(
    tokenizer: "PreTrainedTokenizerBase", length: int, most: int, where: str = "a conversation"
) -> UserError:
    return UserError(
        f"{template_file(tokenizer)} writes {length:,} characters for {where}; at most {most:,} "
        f"are possible; {_REMEDY}"
    )


class _Child:
    """The process that tries templates: started when needed, killed when one exceeds a limit.

    It stops by itself when this process does, as that closes its stdin.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._is_ready = False

    def start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # With -P the program's folder is not on the module path: its files would hide others.
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # NumPy's threads would reserve memory for each of the cores.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        return self._process

    def answers(self, request: Mapping[str, Any]) -> Iterable[dict[str, Any] | str]:
        """Yield an answer for each conversation; a text that says why there is none is the last.

        Raises:
            AdapterflowError: the process does not start.
        """
        if not request["conversations"]:
            return
        process = self.start()
        if not self._is_ready and not isinstance(self._line(_STARTING_SECONDS), dict):
            self.end()
            raise AdapterflowError("the process that tries chat templates does not start")
        self._is_ready = True
        deadline = time.monotonic() + SECONDS
        try:
            assert process.stdin is not None  # noqa: S101 - a pipe
            process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.end()
            raise AdapterflowError("the process that tries chat templates was stopped") from None
        for _ in request["conversations"]:
            found = self._line(deadline - time.monotonic())
            if isinstance(found, str):
                self.end()
            yield found
            if isinstance(found, str):
                return

    def _line(self, seconds: float) -> dict[str, Any] | str:
        """Return the next answer, or why there is none."""
        process = self._process
        assert process is not None  # noqa: S101 - started
        assert process.stdout is not None  # noqa: S101 - a pipe
        deadline = time.monotonic() + max(seconds, 0)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    return f"does not end within {SECONDS:.0f} s"
                some = os.read(process.stdout.fileno(), 1 << 16)
                if not some:
                    return "stops the process that tries it"
                self._buffer += some
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Stop the process, if there is one."""
        process, self._process = self._process, None
        self._buffer, self._is_ready = b"", False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# One request at a time: the answers of the process come in order, and have no names.
_LOCK = threading.Lock()
_CHILD = _Child()
atexit.register(_CHILD.end)
