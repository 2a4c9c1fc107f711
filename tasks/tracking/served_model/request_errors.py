"""A request that gets no answer: what the client is told, and how a value is shown to it."""

import json
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class RequestError(MlflowException):
    """A request without an answer: a server returns its status and its message, and nothing else.

    MLflow's server (3.17) replaces `message` by one that begins with all of the request's data.
    """

    def serialize_as_json(self) -> str:
        """Return the body of the server's response."""
        self.message = str(self)
        body: str = super().serialize_as_json()  # type: ignore[no-untyped-call]
        return body


def refused(message: str) -> RequestError:
    """Return an error that a server turns into status 400 with this message."""
    return RequestError(message, error_code=INVALID_PARAMETER_VALUE)


def said(error: Exception) -> str:
    """Return an error of a library as part of a message."""
    return f"{type(error).__name__}: {error!s:.200}"


def shown(given: Any) -> str:  # noqa: ANN401
    """Return a value as part of a message, cut off if it is long."""
    text = json.dumps(given, default=str)
    return text if len(text) <= 80 else f"{text[:80]}… ({len(text):,} characters)"  # noqa: PLR2004
