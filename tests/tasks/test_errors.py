"""Messages stay short, whatever they repeat, and no secret shows because of it."""

import pickle

import pytest

from tasks.errors import LONGEST_MESSAGE, PassingError, UnwritableError, UserError, shortened
from tasks.runtime.addresses import without_password

LONG = {
    "one word": "x" * 300_000,
    "words": "word " * 60_000,
    "spaces": " " * 300_000,
    "lines": "\n" * 300_000,
    "colons": "a:" * 150_000,
    "dots": "http://user:pw@" + "a." * 150_000,
    "addresses in addresses": "https://host/?next=" * 20_000,
    "parameters": "https://host/?" + "token=x&" * 40_000,
    "CJK": "字" * 300_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_message_has_a_beginning_and_an_end(text: str) -> None:
    """A value of 300 KB is cut in its middle, in every kind of error, also a pickled one."""
    for kind in (UserError, PassingError, UnwritableError):
        message = str(kind(f"data.train: {text}; give a file"))
        assert len(message) <= LONGEST_MESSAGE
        assert message.startswith("data.train: ")
        assert "characters)" in message
        assert str(pickle.loads(pickle.dumps(kind(message)))) == message  # noqa: S301 - our own
    assert without_password(text).count("pw@") == 0


def test_a_short_message_is_as_it_was() -> None:
    """Up to the limit nothing changes, spaces and lines included."""
    text = "a  b\n" * (LONGEST_MESSAGE // 5)
    assert str(UserError(text)) == text == shortened(text)


@pytest.mark.parametrize("before", range(1200, 1400, 7))
def test_an_address_is_not_cut_apart(before: int) -> None:
    """An address is never cut, as the secret in a part of it would not be masked."""
    address = "https://user:secret@host/path"
    message = str(UserError("a " * (before // 2) + address + " b" * 2000))
    assert "secret" not in without_password(message)
    assert "secret" not in shortened(f"at https://user:{'secret' * 300}@host " + "b " * 2000)
