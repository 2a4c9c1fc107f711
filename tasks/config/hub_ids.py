"""Hub ids, `org/name`, as the Hub's own client checks them (huggingface_hub 2.4)."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_PATTERN = f"^{_PART}/{_PART}$"


def is_hub_id(source: str) -> bool:
    """Return whether this has the form of a Hub id, which a local path may have, too."""
    is_refused = "--" in source or ".." in source or source.endswith(".git")
    return re.fullmatch(_PATTERN, source) is not None and not is_refused


def with_revision(source: str) -> tuple[str, str | None]:
    """Return the Hub id and the revision of `org/name@revision`; any other source as it is."""
    name, _, revision = source.partition("@")
    return (name, revision) if is_hub_id(name) and revision else (source, None)


def _checked(source: str) -> str:
    if not is_hub_id(source):
        raise ValueError(f"{source!r} is not a Hub id; write it as org/name")
    return source


# The pattern is for the JSON schema, which can't express the checks for `--`, `..` and `.git`.
HubId = Annotated[str, Field(pattern=_PATTERN), AfterValidator(_checked)]
