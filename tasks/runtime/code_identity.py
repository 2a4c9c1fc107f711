"""Identify the code that made something that is kept between runs: ours and the libraries."""

import hashlib
import json
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "jinja2",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""Those that read, render and tokenize rows, load bases, train and generate."""


@cache  # neither changes while a process runs
def code_sha256() -> str:
    """Return the sha256 of this package's source and of the versions of Python and libraries."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    digest.update(json.dumps([platform.python_version(), library_versions()]).encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    return {name: found for name in _LIBRARIES if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # some are optional, such as bitsandbytes
        return None
