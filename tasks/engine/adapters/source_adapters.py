"""The adapter that a training begins with: found, described, copied into the run's folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config.hub_ids import is_hub_id, with_revision
from tasks.engine.adapters.compatibility import check_tokenizer, tokenizer_identity
from tasks.engine.adapters.folders import AdapterFolder, find_adapter
from tasks.engine.manifest import MANIFEST_FILE
from tasks.errors import UserError
from tasks.records import ChatOptions, DataRecord, FileRecord, LearnedRows, SourceRecord
from tasks.runtime.atomic_files import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_source(source: str) -> SourceRecord:
    """Find an adapter to begin with, in a folder or on the Hub.

    Args:
        source: a folder, or a Hub id, which may end in `@revision`.

    Raises:
        UserError: there is no such adapter.
        PassingError: the Hub cannot be reached.
    """
    name, revision = (source, None) if Path(source).exists() else with_revision(source)
    folder = find_adapter(name, revision, named=source)
    is_on_hub = is_hub_id(name) and not Path(name).exists()
    # The Hub's client names the folder of a download by the commit.
    return describe_source(folder, source, f"{name}@{folder.path.name}" if is_on_hub else None)


def describe_source(
    folder: AdapterFolder,
    given: str,
    reference: str | None = None,
    *,
    learned: LearnedRows | None = None,
    mlflow_run_id: str | None = None,
) -> SourceRecord:
    """Return the record of an adapter to begin with.

    Args:
        folder: the adapter.
        given: how it was configured.
        reference: what that stands for; its path unless given.
        learned: what is known elsewhere of its training rows; its manifest wins.
        mlflow_run_id: the run that trained it.

    Raises:
        UserError: its manifest can't be read.
    """
    rows = folder.manifest.get("trained_on")
    return SourceRecord(
        given=given,
        reference=reference or str(folder.path),
        weights=FileRecord.of(folder.weights_file),
        config=FileRecord.of(folder.config_file),
        learned=LearnedRows(**rows) if rows else learned,
        mlflow_run_id=mlflow_run_id,
    )


def keep_source(source: SourceRecord, folder: Path) -> SourceRecord:
    """Copy the adapter's files to a folder, which is replaced; return the record of the copy.

    Raises:
        UnwritableError: the disk is full, or the place is not writable.
    """
    found = AdapterFolder(source.reference, source.folder)
    manifest = source.folder / MANIFEST_FILE
    with atomic_folder(folder) as partial_copy:
        for file in (found.config_file, found.weights_file, manifest, *found.tokenizer_files()):
            if file.is_file():
                shutil.copyfile(file, partial_copy / file.name)
    places = {
        "weights": FileRecord.of(folder / source.weights.path.name),
        "config": FileRecord.of(folder / source.config.path.name),
    }
    return source.model_copy(update=places)


def check_source_tokenizer(source: SourceRecord, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that rows become the same tokens as in the source's training.

    Args:
        source: the adapter to begin with.
        tokenizer: the run's, with its chat template.

    Raises:
        UserError: the vocabularies differ, or for an adapter trained with a chat template, the
            templates do.
    """
    folder = folder_of(source)
    own = check_tokenizer(folder, tokenizer)
    kind = "chat_template"
    is_chat = folder.manifest.get("template") == "chat"
    if is_chat and tokenizer_identity(own)[kind] != tokenizer_identity(tokenizer)[kind]:
        raise UserError(
            f"lora.from {source.given} was trained with a chat template of its own, which is not "
            "the one of this run; set data.chat_template to that of its training"
        )


def prompted_otherwise(source: SourceRecord, data: DataRecord) -> Iterator[str]:
    """Yield warnings about prompts that are written otherwise than in the source's training."""
    manifest = folder_of(source).manifest
    then = manifest.get("template", data.template)
    if then != data.template:
        yield (
            f"lora.from {source.given} was trained on prompts by the template {then}, and is "
            f"continued on prompts by {data.template}"
        )
    elif "chat" in manifest and (options := ChatOptions.in_manifest(manifest)) != data.chat:
        yield (
            f"lora.from {source.given} was trained with other chat options: "
            f"{options.model_dump_json()}, and is continued with {data.chat.model_dump_json()}"
        )


def folder_of(source: SourceRecord) -> AdapterFolder:
    """Return the folder of an adapter to begin with."""
    return AdapterFolder(source.given, source.folder)
