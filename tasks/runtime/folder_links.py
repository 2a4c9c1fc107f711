"""Symbolic links in folders that others made: none may lead out of the folder.

A file that is read, hashed, copied or pushed through such a link is not the folder's but this
machine's: an adapter that somebody sent could carry a key of whoever exports it to its next place.
"""

import os
from pathlib import Path

from tasks.errors import UserError


def refuse_links_out(folder: Path, source: str) -> None:
    """Check that every link below a folder stays in it.

    In a snapshot of the Hub's cache they may lead to the repository's own `blobs`, too, where
    huggingface_hub keeps the content of each file.

    Args:
        folder: the folder; itself it may be reached by links.
        source: what messages call it.

    Raises:
        UserError: a link leads elsewhere.
    """
    root = folder.resolve()
    allowed = [root, *_blobs(root)]
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            link = Path(place, name)
            if not link.is_symlink():
                continue
            target = Path(os.path.realpath(link))  # also of a link to itself
            if not any(target.is_relative_to(one) for one in allowed):
                raise UserError(
                    f"{source}: {link.relative_to(root)} is a symbolic link out of the folder, to "
                    f"{target}; put the file itself in its place, or remove the link"
                )


def _blobs(root: Path) -> list[Path]:
    """Return the folder of contents beside the snapshot that a folder is or lies in."""
    inside = [one.parent.parent for one in (root, *root.parents) if one.parent.name == "snapshots"]
    found = [one / "blobs" for one in inside if one.name.startswith("models--")]
    return [one for one in found if one.is_dir() and not one.is_symlink()]
