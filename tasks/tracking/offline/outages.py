"""Remember which stores are unreachable, and when to try them again.

A stopped server refuses connections at once, but behind a dead network each call takes the full
timeout. So the pause is proportional to the seconds lost, and a run loses about one percent of its
time at most.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tasks.errors import AdapterflowError, PassingError, UserError, shortened
from tasks.runtime.addresses import without_password

_SHORTEST_PAUSE_SECONDS = 15.0
_PAUSE_PER_SECOND_LOST = 100.0
_MAX_REASON_CHARACTERS = 300
_MISTAKES = range(400, 500)
# Request timeout, conflict, too many requests, client closed request: a retry may succeed.
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
    """Record whether the calls to a store in the block succeed; exceptions are passed on."""
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
    """Return whether the last call failed."""
    return uri in _outages


def why_to_wait(uri: str) -> str | None:
    """Return why the store should not be tried yet; None if it should."""
    outage = _outages.get(uri)
    return outage.reason if outage and time.monotonic() < outage.ends else None


def forget() -> None:
    """Forget all outages, so that every store is tried again at once."""
    _outages.clear()


def reason(error: BaseException) -> str:
    """Return in one line what went wrong; for a lost connection only the root cause.

    mlflow's own messages contain the full address that was called, with its password, or the
    database's statement with all of its values. Passwords are masked.
    """
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    shown = root if isinstance(root, OSError) or _is_of_database(root) else error
    text = without_password(" ".join(str(shown).split())) or type(shown).__name__
    return shortened(text, _MAX_REASON_CHARACTERS)


def _is_of_database(error: BaseException) -> bool:
    """Return whether this is a driver's own error, in the hierarchy that PEP 249 demands."""
    return any(kind.__name__ == "DatabaseError" for kind in type(error).__mro__) and not hasattr(
        error, "statement"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of a store in the block into ours; `what` is what the block does.

    Raises:
        UserError: the request is invalid or not permitted, or the store can't be used at all.
        PassingError: the store can't be reached, or failed to answer.
    """
    try:
        yield
    except AdapterflowError:
        raise
    except Exception as error:
        message = f"{what}: {reason(error)}"
        if is_mistake(error):
            raise UserError(message) from error
        if is_passing(error):
            raise PassingError(message) from error
        raise


def is_mistake(error: Exception) -> bool:
    """Return whether the store answered that the request is invalid or not permitted.

    So is a store that can't be asked, without the database's package or in a file of another kind.
    """
    if (
        isinstance(error, ImportError)
        or type(getattr(error, "orig", None)) is sqlite3.DatabaseError
    ):
        return True
    status = _status(error)
    return status in _MISTAKES and status not in _PASSING


def is_passing(error: Exception) -> bool:
    """Return whether the store was unreachable, or failed to answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    return isinstance(error, MlflowException | OSError | OperationalError) and not is_mistake(error)


def is_refusal(error: Exception) -> bool:
    """Return whether the store will never accept this operation."""
    return isinstance(error, Refused) or _status(error) == _BAD_REQUEST


class Refused(Exception):  # noqa: N818 - an outcome more than an error
    """An operation can never be shipped."""


def _status(error: Exception) -> int | None:
    from mlflow.exceptions import MlflowException

    return error.get_http_status_code() if isinstance(error, MlflowException) else None
