"""README and the pages under `docs/`, taken apart for the tests that check what they say."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "deployments")),
    ROOT / "benchmarks" / "RESULTS.md",
)

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_PROGRAM = re.compile(r"(?:\S*/)?adapterflow")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Return where it stands, for pytest's list."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in these languages."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        yield Block(page, text[: found.start()].count("\n") + 1, found[2], found[3])


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return _LINK.findall(_CODE.sub("", _prose(page)))


def inline_code(page: Path) -> list[str]:
    """Return what stands between single backticks, on one line each."""
    return [" ".join(code.split()) for code in _CODE.findall(_prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in _HEADING.findall(_prose(page))
    }


def commands(block: Block) -> list[list[str]]:
    """Return the arguments of each `adapterflow` in a block of what is typed after `$`."""
    typed = re.sub(r"\\\n", " ", block.text)
    lines = [line[2:] for line in typed.splitlines() if line.startswith("$ ")]
    found = (arguments_of(line) for line in lines if "adapterflow" in line)
    return [arguments for arguments in found if arguments is not None]


def arguments_of(line: str) -> list[str] | None:
    """Return what follows `adapterflow` in a command line; None if another program is called."""
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:  # variables before the program
        words = words[1:]
    return words[1:] if words and _PROGRAM.fullmatch(words[0]) else None
