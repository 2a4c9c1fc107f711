"""Read what a run of `adapterflow` logged to MLflow; as a program, answer requests for it.

Each step resets the kernel's count of the peak memory to measure its own, so the count visible from
outside is that of the last step only.
"""

from typing import Any

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Peak, RunRequest


def mlflow_run(tracking_uri: str, flow_run_id: str) -> Any:  # noqa: ANN401 - MLflow's own type
    """Return the MLflow run of a flow run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    tag = f"tags.`prefect.flow_run_id` = '{flow_run_id}'"
    (found,) = client.search_runs(experiments, filter_string=tag)
    return found


def peak_memory_mb(tracking_uri: str, run: Any) -> float:  # noqa: ANN401
    """Return the peak memory of the step that needed most, in MB."""
    found = numbers(tracking_uri, run).items()
    return max(value for name, value in found if name.startswith("peak_memory_mb/"))


def numbers(tracking_uri: str, run: Any) -> dict[str, float]:  # noqa: ANN401
    """Return the single numbers that a run logged, by name."""
    from mlflow import MlflowClient

    from tasks.tracking import recorded_numbers

    return recorded_numbers(MlflowClient(tracking_uri), run.info.run_id)


if __name__ == "__main__":
    request = read_request(RunRequest)
    found = mlflow_run(request.tracking_uri, request.flow_run_id)
    answer([Peak(peak_memory_mb=peak_memory_mb(request.tracking_uri, found))])
