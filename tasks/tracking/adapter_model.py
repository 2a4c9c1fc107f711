"""Log the saved adapter as an MLflow model: the adapter's files, and code that finds the base.

`mlflow.transformers.log_model` (3.17) would store the entire base under wrong tensor names, and
load it with random layers. This model is a models-from-code pyfunc: `adapter_pyfunc.py`, and the
package `served_model`.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from tasks.config import Task
from tasks.engine.base import traits_of
from tasks.records import BaseSource, SavedRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import Model, ModelSignature

CODE = Path(__file__).with_name("adapter_pyfunc.py")
CODE_BESIDE = (
    CODE.with_name("served_model"),
    CODE.parents[1] / "engine" / "adapters" / "siblings.py",
)
"""What `CODE` needs, in a folder beside it."""
_SHA256_TAG = "adapter.sha256"
_saving = Lock()

# Limits of one request.
_LIMITS = {"max_rows": 256, "max_prompt_tokens": 32768, "max_new_tokens": 2048, "batch_size": 16}


def log_adapter(
    client: "MlflowClient", run_id: str, saved: SavedRecord, requirements: list[str]
) -> str:
    """Log the adapter to the run, once per content; return the model's URI."""
    model = _find(client, run_id, saved) or _create(client, run_id, saved)
    # A model is READY once all its files are uploaded; a PENDING one, left by a kill, is uploaded
    # again.
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            _save(Path(folder) / "model", model, run_id, saved, requirements)
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        client.finalize_logged_model(model.model_id, "READY")
    _link(client, run_id, model)
    return f"models:/{model.model_id}"


def _find(client: "MlflowClient", run_id: str, saved: SavedRecord) -> "LoggedModel | None":
    experiment_id = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models(
        [experiment_id],
        filter_string=(
            f"source_run_id = '{run_id}' AND tags.`{_SHA256_TAG}` = '{saved.weights.sha256}'"
        ),
    )
    return next((model for model in models if model.name == _name(saved)), None)


def _name(saved: SavedRecord) -> str:
    # These characters are not allowed in names of logged models (mlflow 3.17).
    return re.sub(r"[/:.%\"']", "-", saved.adapter_name)


def _create(client: "MlflowClient", run_id: str, saved: SavedRecord) -> "LoggedModel":
    return client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=_name(saved),
        source_run_id=run_id,
        model_type="adapter",
        tags={_SHA256_TAG: saved.weights.sha256},
        params={
            "base_model": saved.base.reference,
            "base_revision": str(saved.base.revision),
            "base_fingerprint": saved.base.fingerprint,
            "num_adapter_parameters": str(saved.num_adapter_parameters),
        },
    )


def _link(client: "MlflowClient", run_id: str, model: "LoggedModel") -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model.model_id not in {o.model_id for o in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _save(
    path: Path, model: "LoggedModel", run_id: str, saved: SavedRecord, requirements: list[str]
) -> None:
    from mlflow.models import Model

    info = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    folders = {saved.adapter_name: saved.folder}
    templates = {saved.adapter_name: saved.template}
    write_model(path, saved.base, folders, templates, requirements, mlflow_model=info)


def write_model(  # noqa: PLR0913 - what is written, and where it is logged
    path: Path,
    base: BaseSource,
    folders: Mapping[str, Path],
    templates: Mapping[str, str],
    requirements: list[str],
    mlflow_model: "Model | None" = None,
) -> None:
    """Write an MLflow model of adapters to a new folder, without base weights.

    Args:
        path: the folder.
        base: the base of all adapters.
        folders: by adapter; MLflow keeps the name that each has.
        templates: by adapter, `chat` or `plain`; the first adapter is the default.
        requirements: what loading it needs, as pip has it.
        mlflow_model: where it is logged, if it is.
    """
    import mlflow.pyfunc

    with warnings.catch_warnings(), _code_unloaded():
        # mlflow 3.17 warns about a missing input example even if there is a signature.
        warnings.filterwarnings("ignore", ".*An input example", UserWarning)
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(CODE),
            code_paths=list(map(str, CODE_BESIDE)),
            artifacts={name: str(folder) for name, folder in folders.items()},
            model_config=model_config(base, templates),
            signature=signature(next(iter(templates)), base),
            pip_requirements=requirements,
            mlflow_model=mlflow_model,
        )


@contextmanager
def _code_unloaded() -> Iterator[None]:
    """Remove the modules that MLflow made of `CODE` in the block; one thread at a time.

    mlflow 3.17 runs the code under a new name each time and leaves it in `sys.modules`: a process
    that logs or bundles many adapters would grow by half a megabyte with each. A model that another
    thread loads meanwhile has its code elsewhere, and keeps its modules.
    """
    with _saving:
        try:
            yield
        finally:
            loaded = dict(sys.modules)
            made = {name for name, one in loaded.items() if _is_made_of_code(name, one)}
            for name in loaded:
                if name.partition(".")[0] in made:
                    del sys.modules[name]


def _is_made_of_code(name: str, module: object) -> bool:
    return name.startswith("code_model_") and getattr(module, "__file__", None) == str(CODE)


def model_config(base: BaseSource, templates: Mapping[str, str]) -> dict[str, object]:
    """Return the settings of the served model; users may override them when loading.

    Args:
        base: the base of all adapters.
        templates: by adapter, `chat` or `plain`; the first adapter is the default.
    """
    return {
        "base_model": None,
        "base_revision": None,
        "recorded_location": base.location,
        "recorded_reference": base.reference,
        "recorded_revision": base.revision,
        "base_fingerprint": base.fingerprint,
        "dtype": base.dtype,
        "quantization": str(base.settings.quantization),
        "auto_class": traits_of(base.settings.task).auto_class,
        "labels": list(base.labels),
        "adapters": dict(templates),
        "default_adapter": next(iter(templates)),
        **_LIMITS,
    }


def signature(adapter: str, base: BaseSource) -> "ModelSignature":
    """Return the signature. It is written by hand, as inferring it would run the model.

    Args:
        adapter: the default adapter.
        base: its task determines the columns.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    # In a column of strings, MLflow's server (3.17) makes the text "None" of null, and "3" of 3.
    anything = AnyType()
    named = ParamSpec("adapter", DataType.string, adapter)
    if not traits_of(base.settings.task).generates:
        given, label = ColSpec(anything, "text"), ColSpec(DataType.string, "label")
        if base.settings.task is Task.TOKEN_CLASSIFICATION:
            given, label = ColSpec(anything, "tokens"), ColSpec(Array(DataType.string), "tags")
        return ModelSignature(
            inputs=Schema([given]),
            outputs=Schema([label, ColSpec(DataType.double, "probability")]),
            params=ParamSchema([named]),
        )
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(anything, "prompt", required=False),
                # A list of {role, content}, or the same as JSON.
                ColSpec(anything, "messages", required=False),
                # A list of the tools that the assistant may call, or the same as JSON.
                ColSpec(anything, "tools", required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [
                named,
                ParamSpec("max_new_tokens", DataType.long, 128),
                ParamSpec("temperature", DataType.double, 0.0),
            ]
        ),
    )


def requirements(saved: SavedRecord) -> list[str]:
    """Return the installed versions of what the model needs, without local parts such as `+cpu`."""
    return requirements_on(saved.base)


def requirements_on(base: BaseSource) -> list[str]:
    """Return the same for any adapters of a base."""
    names = ["torch", "transformers", "peft", "accelerate"]
    if base.settings.quantization != "none":
        names.append("bitsandbytes")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
