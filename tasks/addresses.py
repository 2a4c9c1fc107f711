"""Addresses that people see: whatever password stands in one is left out."""

import re

_IN_FRONT = re.compile(r"(?<=://)([^/?#:]*):[^/?#]*@")
_BEHIND = re.compile(r"(?<=[?&])(password|sslpassword)=[^&#]*", re.IGNORECASE)


def without_password(address: str) -> str:
    """Give the address with *** in place of a password."""
    return _BEHIND.sub(r"\1=***", _IN_FRONT.sub(r"\1:***@", address))
