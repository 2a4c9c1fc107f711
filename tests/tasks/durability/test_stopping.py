"""A signal takes effect after the block that defers it, or within it if that takes too long."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import can_ack_control_intent, capture_sigterm

from tasks.durability.stopping import stopping_later, stopping_within
from tasks.errors import StoppedError


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Let SIGTERM raise, as it does in a run, and put the handlers back."""
    before = signal.signal(signal.SIGTERM, _exit), signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@pytest.mark.parametrize(
    ("number", "effect"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_takes_effect_after_the_block(
    number: signal.Signals, effect: type[BaseException]
) -> None:
    """The block sees that it came and is not interrupted, whatever it ends with."""
    seen = []

    def stopped() -> None:
        with stopping_later(25) as has_come:
            seen.append(has_come())
            os.kill(os.getpid(), number)
            seen.append(has_come())
            raise StoppedError

    with pytest.raises(effect):
        stopped()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGTERM) is _exit


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    """After the time it has, the signal takes effect as it would have without the block."""

    def stopped() -> None:
        with stopping_within(0.0), stopping_later(25):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            pytest.fail("it waited")

    with pytest.raises(SystemExit):
        stopped()


def test_a_second_ctrl_c_interrupts_the_block_and_a_second_sigterm_does_not() -> None:
    """Who presses Ctrl-C twice does not want to wait; a service may send SIGTERM twice."""
    seen = []

    def stopped() -> None:
        with stopping_later(25):
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                os.kill(os.getpid(), number)
                seen.append(number)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert seen == [signal.SIGTERM, signal.SIGTERM]


def test_prefect_may_cancel_a_run_in_the_block() -> None:
    """Prefect's worker finds Prefect's handler there, by which the run counts as cancelled."""
    seen = []

    def stopped() -> None:
        with capture_sigterm(), stopping_later(25):
            seen.append(can_ack_control_intent())
            signal.raise_signal(signal.SIGTERM)
            seen.append(can_ack_control_intent())

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Prefect sends it once more, to what was before
    with pytest.raises(TerminationSignal):
        stopped()
    assert seen == [True, True]


def test_nothing_is_deferred_on_another_thread() -> None:
    """A thread gets no signals; handlers can't be set there."""
    seen: list[bool] = []

    def work() -> None:
        with stopping_later(25) as has_come:
            seen.append(has_come())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
