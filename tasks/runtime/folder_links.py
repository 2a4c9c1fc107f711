"""Refuse symbolic links that lead out of a folder from elsewhere.

A file that is read, copied or pushed through such a link belongs to this machine and not to the
folder: an adapter from a stranger could make its user publish a private key.
"""

import os
from pathlib import Path

from tasks.errors import UserError


def refuse_links_out(folder: Path, source: str) -> None:
    """Check that every link below a folder stays in it.

    In a snapshot of the Hub's cache, links may also lead to the repository's own `blobs`, where
    huggingface_hub keeps the files' contents.

    Args:
        folder: the folder, which may itself be reached through links.
        source: its name in messages.

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
            target = Path(os.path.realpath(link))  # does not raise for a link to itself
            if not any(target.is_relative_to(one) for one in allowed):
                raise UserError(
                    f"{source}: {link.relative_to(root)} is a symbolic link out of the folder, to "
                    f"{target}; replace it by the file itself, or remove it"
                )


def _blobs(root: Path) -> list[Path]:
    """Return the `blobs` folder of the Hub cache's repository that a folder is a snapshot of."""
    inside = [one.parent.parent for one in (root, *root.parents) if one.parent.name == "snapshots"]
    found = [one / "blobs" for one in inside if one.name.startswith("models--")]
    return [one for one in found if one.is_dir() and not one.is_symlink()]
