"""Whatever a library raises over a user's file is one message with the file's name."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from httpx2 import ConnectError

from tasks.engine.reading import json_object, reading
from tasks.errors import AdapterflowError, PassingError, UserError, VerificationError


class PanicException(BaseException):
    """What a Rust extension raises when it panics."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("zelu"), "a.json: KeyError: 'zelu'"),
        (TypeError("an int is no str"), "a.json: TypeError: an int is no str"),
        (AssertionError(), "a.json: AssertionError"),
        (AttributeError("no attribute x"), "a.json: AttributeError: no attribute x"),
        (RecursionError("too deep down"), "a.json: too deep down"),
        (ValueError("two lines\n  of text"), "a.json: two lines of text"),
        (PanicException("index out of bounds"), "a.json: PanicException: index out of bounds"),
    ],
    ids=repr,
)
def test_any_error_becomes_a_message(error: BaseException, told: str) -> None:
    """The library's words are kept, on one line, with the error's name where they need it."""
    with pytest.raises(UserError) as caught, reading("a.json"):
        raise error
    assert str(caught.value) == told


def test_a_long_text_is_shortened() -> None:
    """A library that prints everything it was given does not make a message of megabytes."""
    with pytest.raises(UserError) as caught, reading("a.json"):
        raise ValueError("so much " * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectError("refused"), PassingError),
        (MemoryError(), AdapterflowError),
        (OSError(28, "No space left on device"), AdapterflowError),
        (VerificationError("as it is"), VerificationError),
        (PassingError("as it is"), PassingError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(1), SystemExit),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
    ids=repr,
)
def test_what_is_no_mistake_keeps_its_meaning(
    error: BaseException, kind: type[BaseException]
) -> None:
    """Outages, a full memory or disk, and whoever stops the run are not the file's fault."""
    with pytest.raises(kind) as caught, reading("a.json"):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: file.write_text("[1]"), r"a\.json contains \[1\]; it must be a JSON object"),
        (lambda file: file.write_text(""), r"a\.json is empty"),
        (lambda file: file.write_text("{"), r"a\.json can't be read as JSON: Expecting"),
        (lambda file: file.write_bytes(b'{"a": "\xff"}'), r"a\.json .*utf-8"),
        (lambda file: file.write_text("9" * 5000), r"a\.json .*digits"),
        (lambda file: file.write_text('{"a":' * 99_999), r"a\.json .*recursion"),
        (lambda file: file.mkdir(), r"a\.json .*is a folder"),
        (lambda file: file.exists(), r"a\.json .*does not exist"),
    ],
)
def test_a_file_without_an_object_is_named(
    tmp_path: Path, write: Callable[[Path], object], told: str
) -> None:
    """A JSON file is an object, or a message about what it is."""
    file = tmp_path / "a.json"
    write(file)
    with pytest.raises(UserError, match=told) as caught:
        json_object(file)
    assert len(str(caught.value)) < 500
