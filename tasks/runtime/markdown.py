"""Building blocks of Markdown reports."""

import base64
import re
from pathlib import Path


def cell(text: str, longest: int) -> str:
    """Return a text as the cell of a table: one line of at most `longest` characters."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= longest else f"{line[:longest]}…"


def embedded(title: str, picture: Path) -> str:
    """Return a PNG file as an inline image, for pages that can't load files."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"![{title}](data:image/png;base64,{data})"


def fenced(text: str) -> list[str]:
    """Return the lines of a text as a block of code, whatever backticks the text has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}text", *text.split("\n"), fence]
