"""What MLflow has of a run, for the tests of what is logged."""

from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.records import RunRecord
from tasks.tracking import mlflow_run_id, recorded_numbers


def client_of(run: RunRecord) -> MlflowClient:
    """Return a client of the run's store."""
    return MlflowClient(run.tracking_uri)


def id_of(run: RunRecord) -> str:
    """Return the id of the run in MLflow, which must have it."""
    found = mlflow_run_id(run)
    assert found
    return found


def logged(run: RunRecord) -> Run:
    """Return the run as MLflow has it."""
    return client_of(run).get_run(id_of(run))


def numbers_of(run: RunRecord) -> dict[str, float]:
    """Return the run's single numbers, by name."""
    return recorded_numbers(client_of(run), id_of(run))
