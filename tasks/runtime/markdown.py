"""Building blocks of Markdown reports."""

import base64
from pathlib import Path


def cell(text: str, longest: int) -> str:
    """Return a text as the cell of a table: one line of at most `longest` characters."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= longest else f"{line[:longest]}…"


def embedded(title: str, picture: Path) -> str:
    """Return a PNG file as an inline image, for pages that can't load files."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"![{title}](data:image/png;base64,{data})"
