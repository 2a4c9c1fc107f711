"""Which errors another try may mend, and which the user has to."""

import pytest
import torch
from httpx2 import ConnectError, ReadTimeout, Request, Response
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from tasks.engine.failures import failure
from tasks.errors import AdapterflowError, PassingError, UserError

REQUEST = Request("GET", "http://127.0.0.1:9/")


def answered(status: int) -> HfHubHTTPError:
    """Return the error of a Hub that answered with a status."""
    return HfHubHTTPError("no", response=Response(status, request=REQUEST))


def caused(by: Exception) -> OSError:
    """Return the error that transformers makes of another one."""
    error = OSError("cannot load")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "cause",
    [
        ConnectError("refused"),
        ReadTimeout("slow"),
        answered(503),
        answered(429),
        ConnectionResetError("by peer"),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(cause: Exception) -> None:
    """A lost connection and a server in trouble are worth another try."""
    assert type(failure(caused(cause), "message")) is PassingError


@pytest.mark.parametrize(
    "cause", [torch.OutOfMemoryError("of the GPU"), OSError(28, "No space left on device")]
)
def test_a_full_memory_or_disk_is_neither(cause: Exception) -> None:
    """Another try soon would fail alike, and nothing that the user wrote is wrong in itself."""
    assert type(failure(caused(cause), "message")) is AdapterflowError


@pytest.mark.parametrize(
    "cause",
    [answered(404), answered(401), OfflineModeIsEnabled("by choice"), ValueError("malformed")],
    ids=repr,
)
def test_a_mistake_stays_one(cause: Exception) -> None:
    """A wrong name, a wrong token, being offline by choice and bad files are the user's turn."""
    assert type(failure(caused(cause), "message")) is UserError
