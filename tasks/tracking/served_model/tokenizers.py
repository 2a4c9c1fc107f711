"""Load the adapters' tokenizers, and correct what they add to a text."""

import hashlib
from pathlib import Path
from typing import Any

from .reading import reading


def load_tokenizers(folders: dict[str, Path], base: str, revision: str | None) -> dict[str, Any]:
    """Return each adapter's tokenizer: one object for adapters with equal files, or without any."""
    found: dict[str, Any] = {}
    kinds = {name: _tokenizer_sha256(folder) for name, folder in folders.items()}
    for name, kind in kinds.items():
        if kind not in found:
            found[kind] = load_tokenizer(str(folders[name]), base, revision)
    return {name: found[kind] for name, kind in kinds.items()}


def _tokenizer_sha256(folder: Path) -> str:
    """Return a hash of what may be a tokenizer's file in an adapter's folder; empty without one."""
    if not (folder / "tokenizer_config.json").exists():
        return ""
    found = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        if not file.name.startswith("adapter_"):
            with file.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
            found.update(file.name.encode())
    return found.hexdigest()


def load_tokenizer(folder: str, base: str, revision: str | None) -> Any:  # noqa: ANN401
    """Return the tokenizer in an adapter's folder, or the base's if there is none.

    Raises:
        ValueError: a file of it can't be read.
    """
    from transformers import AutoTokenizer

    if (Path(folder) / "tokenizer_config.json").exists():
        base, revision = folder, None
    with reading(f"the tokenizer of {base!r}"):
        tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return all tokens that end an answer: the base's and the tokenizer's."""
    own = model.generation_config.eos_token_id if model.can_generate() else None
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return tuple(sorted(end for end in ends if end is not None))


def undoubled(tokenizer: Any, text: str, tokens: list[int]) -> list[int]:  # noqa: ANN401
    """Remove special tokens that the tokenizer added although the text has them already."""
    if tokens[:1] != tokens[1:2] and tokens[-1:] != tokens[-2:-1]:
        return tokens
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    if own and own[0] in special and tokens[:2] == [own[0], own[0]] and own[:2] != tokens[:2]:
        tokens = tokens[1:]
    if own and own[-1] in special and tokens[-2:] == [own[-1]] * 2 and own[-2:] != tokens[-2:]:
        tokens = tokens[:-1]
    return tokens
