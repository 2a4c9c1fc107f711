"""Bundle several adapters as one MLflow model, in which each request selects an adapter."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from tasks.engine.adapters import LoadedAdapter
from tasks.records import BaseSource
from tasks.runtime.atomic_files import atomic_folder
from tasks.tracking.adapter_model import CODE, CODE_BESIDE, model_config, requirements_on, signature


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
    import mlflow.pyfunc

    templates = {name: str(one.template) for name, one in adapters.items()}
    with atomic_folder(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as made:
        # mlflow keeps the folder's own name for an artifact, and several may have the same.
        for name, path in folders.items():
            shutil.copytree(path, Path(made) / name)
        with warnings.catch_warnings():
            # mlflow 3.17 warns about a missing input example even if there is a signature.
            warnings.filterwarnings("ignore", ".*An input example", UserWarning)
            mlflow.pyfunc.save_model(
                str(partial),
                python_model=str(CODE),
                code_paths=list(map(str, CODE_BESIDE)),
                artifacts={name: str(Path(made) / name) for name in folders},
                model_config=model_config(base, templates),
                signature=signature(next(iter(adapters)), base),
                pip_requirements=requirements_on(base),
            )
