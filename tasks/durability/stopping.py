"""Let a training complete its step before SIGTERM, Ctrl-C or Cancel takes effect.

Their handlers raise in the middle of a step, and what was trained since the last checkpoint would
be lost. In a block of `stopping_later` a signal is only noted. The training asks for it after each
step, saves a checkpoint and ends; then the signal takes effect as it would have before.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from types import FrameType
from typing import Any

from prefect.utilities import engine as prefect_engine

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OF_PREFECT = "_prefect_sigterm_handler"

_longest: ContextVar[float] = ContextVar("_longest", default=float("inf"))


@contextmanager
def stopping_within(seconds: float) -> Iterator[None]:
    """Let no `stopping_later` in the block take longer, as this process would be killed."""
    token = _longest.set(seconds)
    try:
        yield
    finally:
        _longest.reset(token)


@contextmanager
def stopping_later(seconds: float) -> Iterator[Callable[[], bool]]:
    """Defer SIGTERM and SIGINT; yield a function that returns whether one of them came.

    Whatever the block ends with, the signal takes effect at its end: a `StoppedError` is what is
    raised where its handler does not raise. It takes effect within the block if that lasts for more
    than `seconds` afterwards, or at the second SIGINT. On other threads than the main one, which
    alone gets signals, nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    deferral = _Deferral(min(seconds, _longest.get()))
    deferral.begin()
    try:
        yield deferral.has_come
    finally:
        deferral.end()
        if deferral.number is not None:
            signal.raise_signal(deferral.number)


class _Deferral:
    """The handler of both signals, and what it noted."""

    def __init__(self, seconds: float) -> None:
        self.number: int | None = None
        self._seconds = seconds
        self._before: dict[signal.Signals, Any] = {}
        self._is_prefects = False
        self._is_late = False
        self._came: SimpleQueue[int | None] = SimpleQueue()  # a handler may put into it
        self._over = threading.Event()

    def has_come(self) -> bool:
        """Return whether a signal came."""
        return self.number is not None

    def begin(self) -> None:
        """Replace the handlers, except where the signal is ignored or handled by no Python code."""
        threading.Thread(target=self._watch, daemon=True).start()
        for one in _SIGNALS:
            if (handler := signal.getsignal(one)) not in (None, signal.SIG_IGN):
                self._before[one] = handler
                signal.signal(one, self._note)
        self._is_prefects = self._before.get(signal.SIGTERM) is getattr(prefect_engine, _OF_PREFECT)
        if self._is_prefects:
            # Prefect 3.8 lets its worker cancel a run only while this name is the handler's;
            # otherwise the run would be recorded as crashed.
            setattr(prefect_engine, _OF_PREFECT, signal.getsignal(signal.SIGTERM))

    def end(self) -> None:
        """Put the handlers back."""
        if self._is_prefects and signal.SIGTERM in self._before:
            setattr(prefect_engine, _OF_PREFECT, self._before[signal.SIGTERM])
        while self._before:
            signal.signal(*self._before.popitem())
        self._over.set()
        self._came.put(None)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._came.put(number)
        elif self._is_late or number == signal.SIGINT:
            self.end()
            self.number = None
            signal.raise_signal(number)

    def _watch(self) -> None:
        """Have the signal take effect if the block does not end in time."""
        number = self._came.get()
        if number is not None and not self._over.wait(self._seconds):
            self._is_late = True
            if main := threading.main_thread().ident:
                signal.pthread_kill(main, number)
