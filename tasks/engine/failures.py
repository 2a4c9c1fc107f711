"""Whose turn it is after a library's error: the user's, or another try's."""

from collections.abc import Iterator

from tasks.errors import AdapterflowError, UserError

# The server is overloaded or being restarted, or took too long.
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}


def failure(error: BaseException, message: str) -> AdapterflowError:
    """Give the error to raise: a UserError, unless the cause may pass by itself.

    A lost connection, a server in trouble and memory that others hold may pass. That the Hub's
    client was told to stay offline does not.
    """
    return AdapterflowError(message) if may_pass(error) else UserError(message)


def may_pass(error: BaseException) -> bool:
    """Tell whether another try may help, by the error and all that it came from."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False
    return any(_may_pass(cause) for cause in causes)


def _may_pass(cause: BaseException) -> bool:
    import torch
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _PASSING_STATUSES
    return isinstance(cause, TransportError | torch.OutOfMemoryError | MemoryError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
