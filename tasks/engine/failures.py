"""Whose turn it is after a library's error: the user's, or another try's."""

import errno
from collections.abc import Iterator

from tasks.errors import AdapterflowError, PassingError, UserError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
# The server is overloaded or being restarted, or took too long.
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}


def failure(error: BaseException, message: str) -> AdapterflowError:
    """Give the error to raise for a library's: by its cause, a mistake, a failure or a passing one.

    A lost connection and a server in trouble may pass. That memory or disk do not suffice is no
    mistake and does not pass soon. All else is the user's turn, also that the Hub's client was told
    to stay offline.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_causes(error))
    if any(is_of_the_memory(cause) or is_of_the_disk(cause) for cause in causes):
        return AdapterflowError(message)
    # datasets 5.2 names the cause in its text only.
    offline = any(
        isinstance(cause, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(cause)
        for cause in causes
    )
    if not offline and any(_may_pass(cause) for cause in causes):
        return PassingError(message)
    return UserError(message)


def _may_pass(cause: BaseException) -> bool:
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _PASSING_STATUSES
    return isinstance(cause, TransportError | ConnectionError | TimeoutError)


def is_of_the_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, on a GPU or here."""
    import torch

    # torch 2.13 has a type of its own for a GPU's memory only.
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_of_the_disk(error: BaseException) -> bool:
    """Tell whether the disk is full, or not to be written."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
