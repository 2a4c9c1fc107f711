"""Addresses that people see: whatever password stands in one is left out."""

import re

# Up to the last @: databases take any character in a password. A number before a slash is a port.
_IN_FRONT = re.compile(r"(?<=://)([^\s/?#:@]*):(?!\d+/)\S*@")
_BEHIND = re.compile(r"(?<=[?&])(password|sslpassword)=[^\s&#]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """Give an address, or a text with some, with *** in place of each password."""
    return _BEHIND.sub(r"\1=***", _IN_FRONT.sub(r"\1:***@", text))


def refuse_password(address: str | None) -> str | None:
    """Give a setting back as it is; settings are kept with each run, in Prefect and in MLflow.

    Raises:
        ValueError: a password stands in it.
    """
    shown = without_password(address or "")
    if shown != (address or ""):
        raise ValueError(
            f"{shown} holds a password, which would be kept with each run; leave the setting out "
            "and set MLFLOW_TRACKING_URI to the whole address, or, for a server, give name and "
            "password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return address
