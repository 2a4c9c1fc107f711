"""What to do about a library's error: report a mistake, fail the run, or make another attempt."""

import errno
import sys
from collections.abc import Iterator

from tasks.errors import AdapterflowError, PassingError, UserError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
# The server is overloaded or being restarted, or took too long.
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}


def failure(error: BaseException, message: str) -> AdapterflowError:
    """Return the error to raise in place of a library's, by the causes in its chain.

    Args:
        error: as the library raised it.
        message: of the returned error.

    Returns:
        AdapterflowError where memory or disk space ran out: no mistake of the user's, and an
        immediate retry would not help. PassingError where the connection was lost or a server is
        overloaded, so that a retry may succeed. UserError otherwise, and also where the Hub client
        is in offline mode, although that looks like a lost connection.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_causes(error))
    if any(is_out_of_memory(cause) or is_full_disk(cause) for cause in causes):
        return AdapterflowError(message)
    # datasets 5.2 drops the cause from the chain and names it in its message only.
    offline = any(
        isinstance(cause, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(cause)
        for cause in causes
    )
    if not offline and any(_may_pass(cause) for cause in causes):
        return PassingError(message)
    return UserError(message)


def _may_pass(cause: BaseException) -> bool:
    from httpx2 import LocalProtocolError, TransportError, UnsupportedProtocol
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _PASSING_STATUSES
    if isinstance(cause, LocalProtocolError | UnsupportedProtocol):  # HF_ENDPOINT or HF_TOKEN
        return False
    return isinstance(cause, TransportError | ConnectionError | TimeoutError)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or in this process."""
    # torch 2.13 raises OutOfMemoryError for GPU memory only; on the CPU it is a RuntimeError.
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    torch = sys.modules.get("torch")  # an import takes seconds, and then no error is torch's
    return isinstance(error, MemoryError) or bool(
        torch and isinstance(error, torch.OutOfMemoryError)
    )


def is_full_disk(error: BaseException) -> bool:
    """Return whether the disk is full, over quota or not writable."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
