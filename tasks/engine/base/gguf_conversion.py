"""GGUF files as base models: dequantized once to safetensors, and cached by content.

transformers 5 keeps GGUF weights quantized by default, and such a model cannot be saved. Loading
the demo's GGUF file takes 20 s, loading the converted folder 1 s.
"""

import hashlib
import logging
from pathlib import Path

from filelock import FileLock

from tasks.engine.base.gguf_header import check_gguf
from tasks.engine.base.upstream_progress import shown_as
from tasks.engine.reading import reading
from tasks.runtime import home
from tasks.runtime.atomic_files import atomic_folder
from tasks.runtime.code_identity import library_versions

log = logging.getLogger(__name__)

_SETTINGS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""The files that transformers 5.23 may read beside a GGUF file."""


def converted_folder(gguf: Path) -> Path:
    """Return a folder with the model in float32 safetensors, its tokenizer and configuration.

    The folder's name has a hash of everything that it is a function of: the GGUF file, the files
    beside it that transformers reads, this module and the libraries' versions. It is written
    atomically and under a lock, so a folder that exists is complete.

    Args:
        gguf: the GGUF file.

    Raises:
        UserError: transformers cannot read the file.
        UnwritableError: the disk is full, or the cache is not writable.
    """
    check_gguf(gguf)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    made_by = _made_by(gguf)
    folder = home.cache() / "converted" / f"{gguf.stem}-{digest[:16]}-{made_by[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            log.info("converting %s to safetensors, once (about 20 s per 100 MB)", gguf.name)
            with atomic_folder(folder) as partial:
                _write_model(gguf, partial)
    return folder


def _made_by(gguf: Path) -> str:
    """Hash what the conversion is a function of, apart from the GGUF file."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name, version in library_versions().items():
        digest.update(f"{name} {version}\n".encode())
    for file in (gguf.parent / name for name in _SETTINGS):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with reading(f"transformers cannot read {gguf}"), shown_as("converted weight"):
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            trust_remote_code=False,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
