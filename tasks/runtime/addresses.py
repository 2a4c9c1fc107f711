"""Addresses that people see and records keep: the secrets in one are masked, or it is refused.

A secret is whatever lets somebody in: a password before the host, all of what stands there in a web
address (where a token may be the name), and parameters such as `token`, also those of a connection
string within a parameter (`odbc_connect`). A secret that is a part of the path is not recognised.
"""

import re
from urllib.parse import unquote_plus

_MASK = "***"
# A path that was made of an address has one slash behind the scheme.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*:)(/+)(.+)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*:/\S+")
_SLASHES_BEFORE_A_HOST = 2
_WEB = re.compile(r"(^|\+)https?:$", re.IGNORECASE)
_PORT = re.compile(r"[^:]*:\d*$")
_HOST = re.compile(r"(localhost|[\w.-]+\.[\w.-]*\w|\[[\da-fA-F:]+\])(:\d+)?([/?#]|$)|[\w.-]+:\d+")
"""What behind an @ in a path is more likely a server than a version such as `v1`."""
# `sslkey` and `passfile` are the places of files.
_SECRET = re.compile(
    r"(pass|passw(or)?d|passphrase|pwd|token|secret|(?<!ssl)key|auth|authorization|credentials?"
    r"|signature|sig|jwt)\s*$",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"(?<=[?&#;])([^=?&#;\s]+)=([^&#]*)")


def masked(address: str) -> str:
    """Return an address with *** in place of each secret; any other text as it is.

    A web address with an @ in its path is taken for one whose password has a slash in it.
    """
    return _masked(address, may_have_versions=False)


def without_password(text: str) -> str:
    """Return a text with the secrets of the addresses in it masked."""
    return _IN_TEXT.sub(lambda found: _masked(found[0], may_have_versions=True), text)


def refuse_password(setting: str, advice: str) -> None:
    """Check that a setting holds no secret: it is kept with each run, in Prefect and in MLflow.

    Args:
        setting: what was given, an address or not.
        advice: what to do instead.

    Raises:
        ValueError: it holds one.
    """
    shown = masked(setting)
    if shown != setting:
        raise ValueError(
            f"{shown} holds a password or token, which would be kept with each run; {advice}"
        )


def _masked(address: str, *, may_have_versions: bool) -> str:
    match = _ADDRESS.search(address)
    if not match:
        return address
    before, scheme, slashes, rest = address[: match.start()], *match.groups()
    is_web = bool(_WEB.search(scheme))
    has_host = len(slashes) <= _SLASHES_BEFORE_A_HOST
    end = _end_of_secret(rest, is_web, may_have_versions) if has_host else 0
    if end:
        name = "" if is_web else f"{rest.partition(':')[0]}:"
        rest = name + _MASK + rest[end:]
    return before + scheme + slashes + _PARAMETER.sub(_masked_parameter, rest)


def _end_of_secret(rest: str, is_web: bool, may_have_versions: bool) -> int:  # noqa: FBT001
    """Return where the @ behind a secret stands; 0 where there is none.

    Databases take any character in a password, so that it may look like the end of the host.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    last = rest.rfind("@")
    in_path = rest.rfind("@", 0, len(re.split(r"[?#]", rest, maxsplit=1)[0]))
    if "@" in authority:
        end = authority.rfind("@") if is_web else in_path
        return end if is_web or ":" in rest[:end] else 0
    if ":" in authority and not _PORT.match(authority):
        return max(last, 0)
    if in_path < 0 or not (is_web or ":" in authority):
        return 0
    looks_like_version = may_have_versions and not _HOST.match(rest[in_path + 1 :])
    return 0 if is_web and looks_like_version else in_path


def _masked_parameter(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    if not value or not (_SECRET.search(unquote_plus(name)) or _is_secret(value)):
        return found[0]
    return f"{name}={_MASK}"


def _is_secret(value: str) -> bool:
    """Return whether a parameter's value is itself an address or connection string with one."""
    read = unquote_plus(unquote_plus(value))  # some are quoted twice
    pairs = (one.partition("=") for one in re.split(r"[;&?\s]", read))
    return any(_SECRET.search(name) and held for name, _, held in pairs) or (
        "://" in read and masked(read) != read
    )
