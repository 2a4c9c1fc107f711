"""The errors that adapterflow raises on purpose, by what should happen next.

A message may repeat what a user gave, of any length. So each is shortened when the error is made,
and is short wherever it is shown: on a terminal, in a log, as the state of a run. Nor does it have
characters that a terminal would obey.
"""

import re

LONGEST_MESSAGE = 2000
_SCHEME = re.compile(r"[A-Za-z][\w+.-]{0,30}:/")
_FIRST_WORD = re.compile(r"\A\S*")
_LAST_WORD = re.compile(r"\S*\Z")


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return a text of about `longest` characters at most: its beginning and its end.

    Words are never split, as a part of an address would no longer be recognized as one whose secret
    must be masked; only a single word of hundreds of characters is, unless it is an address.
    """
    if len(text) <= longest:
        return text
    long_word = longest // 2
    words = re.sub(rf"\S{{{long_word},}}", lambda found: _ends_of_word(found[0], long_word), text)
    if len(words) <= longest:
        return words
    head = _LAST_WORD.sub("", words[: longest * 2 // 3]).rstrip()
    tail = _FIRST_WORD.sub("", words[-(longest // 4) :]).lstrip()
    return f"{head} … {tail} ({len(text):,} characters)"


def _ends_of_word(word: str, longest: int) -> str:
    length = f"({len(word):,} characters)"
    if address := _SCHEME.search(word):
        return f"{word[: address.end()][-longest:]}… {length}"
    return f"{word[: longest // 3]}…{word[-(longest // 3) :]} {length}"


def _escaped(text: str) -> str:
    """Return a text in which what a terminal would obey, or can't show, is escaped."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


class AdapterflowError(Exception):
    """Root of all errors raised on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_escaped(shortened(message)))


class UserError(AdapterflowError, ValueError):
    """The user's input can't work: exit status 2, no retry.

    The message says what was given, what was possible and what to do.
    """


class UnwritableError(AdapterflowError, OSError):
    """A file or folder can't be written: the disk is full, or permission is missing. No retry."""


class PassingError(AdapterflowError):
    """A temporary failure, such as a lost connection: the step is retried."""


class VerificationError(AdapterflowError, RuntimeError):
    """A step's verification failed, such as an adapter that training did not change. No retry."""


class StoppedError(AdapterflowError):
    """A training ended before its last step, as it was asked to. Resuming continues it."""


class PartialFailureError(AdapterflowError):
    """Some of several runs failed; what the others made is complete. Resuming repeats those."""
