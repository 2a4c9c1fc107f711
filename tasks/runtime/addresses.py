"""Mask or refuse the secrets in addresses, before they are shown or recorded.

A secret is anything that grants access: the password before the host; in a web address all of the
user information there, as a token may take the place of the name; and parameters such as `token`,
also in a connection string within a parameter (`odbc_connect`). Secrets in the path are not
recognized.
"""

import re
from urllib.parse import unquote_plus, urlsplit

_MASK = "***"
# An address that was turned into a path has one slash after the scheme.
# Texts may have any length, so each repetition that could be tried at every character is bounded.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]{0,40}:)(/+)(.+)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]{0,40}:/\S+")
_SLASHES_BEFORE_A_HOST = 2
_WEB = re.compile(r"(^|\+)https?:$", re.IGNORECASE)
_PORT = re.compile(r"[^:]*:\d*$")
_HOST = re.compile(
    r"(localhost|[\w.-]{1,253}\.[\w.-]{0,253}\w|\[[\da-fA-F:]+\])(:\d+)?([/?#]|$)|[\w.-]+:\d+"
)
"""What follows an @ in a path and is a server rather than a version such as `v1`."""
# `sslkey` and `passfile` are paths of files, and not secrets themselves.
_SECRET = re.compile(
    r"(pass|pass_?w(or)?d|passphrase|passcode|pwd|token|secret|(?<!ssl)key|auth|authorization"
    r"|credentials?|signature|sig|jwt|bearer|\bsas|\bpw)(\[\])?\d*\s*$",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"(?<=[?&#;])([^=?&#;\s]+)=([^&#]*)")
_MAX_NESTED = 10


def masked(address: str) -> str:
    """Return an address with *** in place of each secret, and any other text unchanged.

    An @ in the path of a web address is taken for the end of a password that contains a slash.
    """
    return _masked(address, may_have_versions=False)


def without_password(text: str) -> str:
    """Return a text with the secrets of all addresses in it masked."""
    return _IN_TEXT.sub(lambda found: _masked(found[0], may_have_versions=True), text)


def refuse_password(setting: str, advice: str) -> None:
    """Check that a setting contains no secret, as settings are recorded in Prefect and MLflow.

    Args:
        setting: any text, an address or not.
        advice: what to do instead, for the message.

    Raises:
        ValueError: it contains one.
    """
    shown = masked(setting)
    if shown != setting:
        raise ValueError(
            f"{shown} contains a password or token, which would be recorded with each run; {advice}"
        )


def _masked(address: str, *, may_have_versions: bool) -> str:
    match = _ADDRESS.search(address)
    if not match:
        return address
    before, scheme, slashes, rest = address[: match.start()], *match.groups()
    is_web = bool(_WEB.search(scheme))
    has_host = is_web or len(slashes) <= _SLASHES_BEFORE_A_HOST
    end = _end_of_secret(rest, is_web, may_have_versions) if has_host else 0
    if end:
        name = "" if is_web else f"{rest.partition(':')[0]}:"
        rest = name + _MASK + rest[end:]
    return before + scheme + slashes + _PARAMETER.sub(_masked_parameter, rest)


def _end_of_secret(rest: str, is_web: bool, may_have_versions: bool) -> int:  # noqa: FBT001
    """Return the position of the @ after a secret; 0 if there is none.

    Database URIs allow any character in a password, also those that end a host elsewhere.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    last = rest.rfind("@")
    in_path = rest.rfind("@", 0, len(re.split(r"[?#]", rest, maxsplit=1)[0]))
    if "@" in authority:
        end = authority.rfind("@") if is_web else in_path
        return end if is_web or ":" in rest[:end] else 0
    if ":" in authority and not (is_web and _PORT.match(authority)):
        return max(last, 0)  # SQLAlchemy, too, takes what looks like a port for a password then
    if in_path < 0 or not is_web:
        return 0
    looks_like_version = may_have_versions and not _HOST.match(rest[in_path + 1 :])
    return 0 if looks_like_version else in_path


def _masked_parameter(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    if not value or not (_SECRET.search(unquote_plus(name)) or _is_secret(value)):
        return found[0]
    return f"{name}={_MASK}"


def _is_secret(value: str) -> bool:
    """Return whether a parameter's value is an address or connection string with a secret.

    One with addresses nested too deep to be looked into counts as a secret.
    """
    read = unquote_plus(unquote_plus(value))  # some are percent-encoded twice
    if read.count(":/") > _MAX_NESTED:
        return True
    pairs = (one.partition("=") for one in re.split(r"[;&?]|(?<![\s=])\s(?!\s*=)", read))
    return any(_SECRET.search(name) and held for name, _, held in pairs) or (
        "://" in read and masked(read) != read
    )


def has_host(url: str) -> bool:
    """Return whether an address names a server."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port, that are none
        return False
