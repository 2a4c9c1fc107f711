"""What is measured of servers of adapters: who is asked what, and the figures."""

import threading
import time

import pytest

from benchmarks.served import Answered, Measured, Row, Served, _measured, _rows

ROWS = [{"messages": [{"content": str(number)}]} for number in range(13)]


class Asked:
    """A stand-in of a server, which remembers what it was asked, and how many asked at once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.served = Served("stand-in", names, 1.0, self.ask)
        self.requests: list[tuple[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def ask(self, row: Row, name: str) -> int:
        """Answer with 32 tokens, after a while."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append((row["messages"][0]["content"], name))
        time.sleep(0.01)
        with self._lock:
            self._at_once -= 1
        return 32


def test_each_request_has_a_prompt_of_its_own_and_all_servers_the_same() -> None:
    """A server that remembers prompts gains nothing by it, not even from warming up."""
    one, other = Asked(("a",)), Asked(("a", "b"))
    found = _measured([one.served, other.served], ROWS, (1, 3), 3, 2)
    assert {len(repeats) for repeats in found.values()} == {2}
    measured = [asked.requests[len(asked.served.names) :] for asked in (one, other)]
    prompts = [sorted(prompt for prompt, _ in requests) for requests in measured]
    assert prompts[0] == prompts[1] == sorted({str(number) for number in range(12)})
    warmed = {prompt for prompt, _ in one.requests[:1] + other.requests[:2]}
    assert warmed == {"12"}
    assert one.most_at_once <= 3


def test_adapters_are_named_in_turn() -> None:
    """Each adapter is asked as often as the others, but for a remainder."""
    asked = Asked(("a", "b"))
    _measured([asked.served], ROWS, (1,), 3, 2)
    assert [name for _, name in asked.requests[2:]] == ["a", "b", "a", "a", "b", "a"]


def test_figures_are_those_of_the_answers() -> None:
    """Rates are of a repeat's seconds, latencies of all its requests."""
    answers = tuple(Answered(float(seconds), 32) for seconds in range(1, 22))
    served = Asked(("a", "b")).served
    (row,) = _rows({(served, 4): [Measured(answers, 10.5), Measured(answers, 10.5)]})
    assert row == ("stand-in, 2", "4", "2.00", "64.0", "11.00", "20.00", "1")


@pytest.mark.parametrize("number", [1, 2])
def test_few_requests_have_figures_too(number: int) -> None:
    """A trial of one request ends with a table."""
    served = Asked(("a",)).served
    answers = (Answered(2.0, 32),) * number
    (row,) = _rows({(served, 1): [Measured(answers, 2.0 * number)]})
    assert row[-3:] == ("2.00", "2.00", "1")
