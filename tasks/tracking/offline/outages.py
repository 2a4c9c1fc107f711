"""Which stores can't be reached at the moment, and when to try them again.

A server that is gone answers at once, one behind a dead network only by the time limit. So the
pause follows from the seconds that were lost: a run waits about one percent of its time at most.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tasks.runtime.addresses import without_password

_SHORTEST_PAUSE_SECONDS = 15.0
_PAUSE_PER_SECOND_LOST = 100.0
_MAX_REASON_CHARACTERS = 300
_MISTAKES = range(400, 500)
# Request timeout, conflict, too many requests, client closed the request: another try may help.
_PASSING = {408, 409, 429, 499}
_BAD_REQUEST = 400


@dataclass
class _Outage:
    reason: str
    seconds_lost: float
    ends: float
    """When the store is tried again, in seconds of the monotonic clock."""


_outages: dict[str, _Outage] = {}


@contextmanager
def watch(uri: str) -> Iterator[None]:
    """Note whether calls to the store go well; they raise as they would."""
    started = time.monotonic()
    try:
        yield
    except Exception as error:
        now = time.monotonic()
        before = _outages.get(uri)
        lost = now - started + (before.seconds_lost if before else 0)
        pause = max(_SHORTEST_PAUSE_SECONDS, _PAUSE_PER_SECOND_LOST * lost)
        _outages[uri] = _Outage(reason(error), lost, now + pause)
        raise
    _outages.pop(uri, None)


def is_out(uri: str) -> bool:
    """Tell whether the last call failed, whatever came before it."""
    return uri in _outages


def why_to_wait(uri: str) -> str | None:
    """Give why the store is not to be tried yet; None if it is."""
    outage = _outages.get(uri)
    return outage.reason if outage and time.monotonic() < outage.ends else None


def forget() -> None:
    """Try every store again at once."""
    _outages.clear()


def reason(error: BaseException) -> str:
    """Say in one line what went wrong: of a lost connection only the cause at its root.

    mlflow's own messages name the whole address that was called.
    """
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    told = root if isinstance(root, OSError) else error
    text = without_password(" ".join(str(told).split())) or type(told).__name__
    return text if len(text) <= _MAX_REASON_CHARACTERS else f"{text[:_MAX_REASON_CHARACTERS]}…"


def is_mistake(error: Exception) -> bool:
    """Tell whether the store answered that this can't work, such as for want of permission."""
    status = _status(error)
    return status in _MISTAKES and status not in _PASSING


def is_passing(error: Exception) -> bool:
    """Tell whether the store could not be asked, or was not able to answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    return isinstance(error, MlflowException | OSError | OperationalError) and not is_mistake(error)


def is_refusal(error: Exception) -> bool:
    """Tell whether the store will never take this operation, whoever asks and whenever."""
    return isinstance(error, Refused) or _status(error) == _BAD_REQUEST


class Refused(Exception):  # noqa: N818 - a verdict
    """An operation that can't be shipped, now or later."""


def _status(error: Exception) -> int | None:
    from mlflow.exceptions import MlflowException

    return error.get_http_status_code() if isinstance(error, MlflowException) else None
