"""A saved adapter in a folder: found locally or on the Hub, and read without a model."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config.hub_ids import is_hub_id
from tasks.engine.adapters.adapter_files import (
    CONFIG_FILE,
    check_adapter_weights,
    read_adapter_config,
    read_manifest,
)
from tasks.engine.adapters.adapter_state import WEIGHTS_FILE, load_weights, loadable
from tasks.engine.adapters.methods import LORA
from tasks.engine.base import ADAPTER_FILES, TOKENIZER_FILES, download
from tasks.engine.manifest import MANIFEST_FILE
from tasks.engine.reading import check_file, reading
from tasks.errors import UserError
from tasks.records import FileRecord
from tasks.runtime.atomic_files import atomic_folder, check_new
from tasks.runtime.folder_links import refuse_links_out

if TYPE_CHECKING:
    from torch import Tensor

# In its files PEFT names a weight by its path in a PeftModel around the base. Without this prefix
# PEFT only warns about missing keys, and the model answers as the base; transformers reads both.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter's complete folder; its files are read on access."""

    source: str
    """The folder or Hub id as the user named it, for messages."""
    path: Path

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What adapterflow wrote about the adapter; empty if another program saved it.

        Raises:
            UserError: it cannot be read, or is not an adapter's manifest.
        """
        file = self.path / MANIFEST_FILE
        return read_manifest(file, self.source) if os.path.lexists(file) else {}

    @cached_property
    def config(self) -> Any:  # noqa: ANN401 - each method has a class of its own
        """The adapter's configuration, of the method's own class.

        Raises:
            UserError: it cannot be read, or it is of a method that can't be used.
        """
        from peft import PeftConfig

        self.given_config  # noqa: B018 - read for its checks
        with reading(f"{self.source}: {CONFIG_FILE} cannot be used"):
            return PeftConfig.from_pretrained(str(self.path))

    @cached_property
    def given_config(self) -> Mapping[str, Any]:
        """The adapter's configuration as it is written.

        Raises:
            UserError: it cannot be read, it is of a method that can't be used, or a setting is
                impossible.
        """
        return read_adapter_config(self.config_file, self.source)

    @property
    def method(self) -> str:
        """The method's name, as in `lora.method`."""
        return str(self.given_config["peft_type"]).lower()

    def require_lora(self, what: str, instead: str) -> None:
        """Check that the adapter is LoRA.

        Args:
            what: needs LoRA, as the subject of the message.
            instead: what to do.

        Raises:
            UserError: it is of another method.
        """
        if self.method != LORA:
            raise UserError(f"{self.source} is {self.method}, but {what} LoRA; {instead}")

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the weights by their names in the base, from the file's header alone.

        Raises:
            UserError: the file is truncated, or has weights that no adapter can have.
        """
        header = check_adapter_weights(self.weights_file, self.given_config, self.source)
        return {_place(key): entry.shape for key, entry in header.items()}

    @property
    def config_file(self) -> Path:
        """The path of the configuration."""
        return self.path / CONFIG_FILE

    @property
    def weights_file(self) -> Path:
        """The path of the weights."""
        return self.path / WEIGHTS_FILE

    def weights(self) -> dict[str, "Tensor"]:
        """Read the weights, by their names in the base."""
        with reading(f"{self.source}: {WEIGHTS_FILE} cannot be read"):
            return {_place(key): value for key, value in load_weights(self.weights_file).items()}

    def has_tokenizer(self) -> bool:
        """Return whether a tokenizer was saved with the adapter, as TRL does."""
        return (self.path / "tokenizer_config.json").is_file()

    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer that was saved with the adapter."""
        return [file for kind in TOKENIZER_FILES for file in sorted(self.path.glob(kind))]


def find_adapter(
    source: str | Path, revision: str | None = None, *, named: str | None = None
) -> AdapterFolder:
    """Find an adapter, and download it if it is on the Hub.

    Args:
        source: a folder, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        named: its name in messages; the source unless given.

    Raises:
        UserError: there is no adapter, a link leads out of its folder, or its files do not have the
            sha256 in its manifest.
        PassingError: the Hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if is_hub_id(str(source)) and not folder.exists():
        folder = download(str(source), revision, [*ADAPTER_FILES], "adapter")
    elif revision:
        raise UserError(f"revision {revision!r} was given, but {source} is not a Hub id; remove it")
    refuse_links_out(folder, named or str(source))
    _check_files(source, folder)
    found = AdapterFolder(named or str(source), folder.resolve())
    _check_manifest(found)
    found.shapes  # noqa: B018 - reads and checks the configuration and the weights
    return found


def copy_adapter(adapter: AdapterFolder, folder: Path) -> None:
    """Copy the adapter's files to a new folder, atomically.

    Raises:
        UserError: the folder exists.
    """
    check_new(folder)
    with atomic_folder(folder) as partial:
        for file in adapter.path.iterdir():
            if file.is_file():
                shutil.copyfile(file, partial / file.name)


def _check_files(source: str | Path, folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        what = f"has no {CONFIG_FILE}" if folder.is_dir() else "is not a folder"
        inside = sorted(folder.glob(f"**/{CONFIG_FILE}")) if folder.is_dir() else []
        hint = f"; did you mean {inside[0].parent}?" if inside else ""
        raise UserError(f"{source} {what}; give an adapter's folder or Hub id (org/name){hint}")
    if not os.path.lexists(folder / WEIGHTS_FILE):
        # No fallback to adapter_model.bin: it is a pickle, which can run code when it is loaded.
        has = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(
            f"{source} has no {WEIGHTS_FILE}; it contains {has}; save the adapter as safetensors"
        )
    check_file(folder / WEIGHTS_FILE, f"{source}: {WEIGHTS_FILE}")


def _check_manifest(adapter: AdapterFolder) -> None:
    for name, sha256 in adapter.manifest.get("files", {}).items():
        file = adapter.path / name
        if name in {CONFIG_FILE, WEIGHTS_FILE} and FileRecord.of(file).sha256 != sha256:
            raise UserError(
                f"{adapter.source}: {name} does not have the sha256 in {MANIFEST_FILE}, so it was "
                f"changed or damaged; save the adapter again, or remove {MANIFEST_FILE} if you "
                "changed it on purpose"
            )


def _place(key: str) -> str:
    return loadable(key.removeprefix(PEFT_PREFIX))
