"""Bundle several adapters as one MLflow model, in which each request selects an adapter."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasks.engine.adapters import LoadedAdapter
from tasks.records import BaseSource
from tasks.runtime.atomic_files import atomic_folder
from tasks.tracking.adapter_model import requirements_on, write_model


def write_bundle(
    folder: Path,
    base: BaseSource,
    adapters: Mapping[str, LoadedAdapter],
    folders: Mapping[str, Path],
) -> None:
    """Write the model to a new folder, without base weights, atomically.

    Args:
        folder: for `mlflow models serve -m` and `mlflow.pyfunc.load_model`.
        base: the base on which all of them were loaded.
        adapters: the adapters by name; the first is the default.
        folders: their folders by name.
    """
    templates = {name: str(one.template) for name, one in adapters.items()}
    with atomic_folder(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as made:
        # mlflow keeps the folder's own name for an artifact, and several may have the same.
        copies = {name: Path(made) / name for name in templates}
        for name, copy in copies.items():
            shutil.copytree(folders[name], copy)
        write_model(partial, base, copies, templates, requirements_on(base))
