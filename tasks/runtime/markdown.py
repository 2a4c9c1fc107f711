"""Building blocks of Markdown reports."""

import base64
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tasks.errors import shortened

_LONGEST_TEXT = 1200

BREAK = "<wbr>"
PAGE_COLUMNS = 80
"""Characters of a block of code that Prefect's page of an artifact shows 1280 pixels wide."""


def cell(text: str, longest: int) -> str:
    """Return a text as the cell of a table: one line of at most `longest` characters."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= longest else f"{line[:longest]}…"


def embedded(title: str, picture: Path) -> str:
    """Return a PNG file as an inline image, for pages that can't load files."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"![{title}](data:image/png;base64,{data})"


def fenced(text: str, width: int | None = None) -> list[str]:
    """Return the lines of a text as a block of code, whatever backticks the text has.

    Args:
        text: the text.
        width: break lines that have more characters, which Prefect's pages would cut.
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    lines = text.split("\n")
    if width:
        lines = [part for line in lines for part in _wrapped(line, width)]
    return [f"{fence}text", *lines, fence]


def blocks(texts: Mapping[str, str]) -> list[str]:
    """Return texts one below the other, each as a block of code under its name."""
    lines: list[str] = []
    for name, text in texts.items():
        shown = shortened(text.strip(), _LONGEST_TEXT) or "(empty)"
        lines += [f"**{name}**", "", *fenced(shown, PAGE_COLUMNS), ""]
    return lines


def _wrapped(line: str, width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(
        width, tabsize=4, break_on_hyphens=False, replace_whitespace=False, drop_whitespace=False
    )
    return wrapper.wrap(line) or [""]


def breakable(path: object) -> str:
    """Return a path as text that may be broken after each slash, so that no page cuts it.

    Where it is copied from the page it is the path itself.
    """
    escaped = re.sub(r"([\\`*_\[\]<>&])", r"\\\1", str(path))
    return escaped.replace("/", f"/{BREAK}")


def without_breaks(markdown: str) -> str:
    """Return Markdown for readers that show `<wbr>` instead of obeying it."""
    return markdown.replace(BREAK, "")
