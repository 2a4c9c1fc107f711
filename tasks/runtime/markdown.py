"""Pieces of the Markdown that reports are made of."""

import base64
from pathlib import Path


def cell(text: str, longest: int) -> str:
    """Give a text as the cell of a table: one line, of at most so many characters."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= longest else f"{line[:longest]}…"


def embedded(title: str, picture: Path) -> str:
    """Give a PNG file within the text itself, for pages that can load no files."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"![{title}](data:image/png;base64,{data})"
