"""Delete a run: permanently from an SQLite store, elsewhere into MLflow's trash."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.tracking.store import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient


def delete_run(client: "MlflowClient", run_id: str) -> None:
    """Delete the run with its models and artifacts; on a server, `mlflow gc` empties the trash."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        client.delete_logged_model(output.model_id)
    client.delete_run(run_id)
    if file := database_file(client.tracking_uri):
        _delete_files(run.info.artifact_uri)
        store = SqlAlchemyStore(client.tracking_uri, (file.parent / "artifacts").as_uri())
        # What `mlflow gc` calls (3.17); the command itself would delete other people's runs, too.
        store._hard_delete_run(run_id)  # noqa: SLF001


def _delete_files(artifact_uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    get_artifact_repository(artifact_uri).delete_artifacts()
    if is_local_uri(artifact_uri):
        shutil.rmtree(Path(local_file_uri_to_path(artifact_uri)).parent, ignore_errors=True)
