"""What people see of a run while it runs: its description in MLflow, and its link in Prefect."""

from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.runtime import flow_run

from tasks.config import TrainAdapterConfig, TrainVariantsConfig
from tasks.records import DataRecord, RunRecord, SourceRecord, SplitRecord
from tasks.runtime.links import link_to_prefect
from tasks.runtime.progress import logger
from tasks.tracking import mlflow_run_id, run_url, ui_command

_LINK = "mlflow-run"


def about(
    config: TrainAdapterConfig, data: DataRecord, source: SourceRecord | None
) -> dict[str, str]:
    """Return the lines of a run's description that are known before its first step."""
    base = config.base_model.hub_id or config.base_model.source
    lines = {**about_data(data), "Base": f"`{base}`", **about_source(source)}
    return {**lines, "Prefect run": link_to_prefect()}


def about_source(source: SourceRecord | None) -> dict[str, str]:
    """Return the line of a description that says which adapter was continued, if one was."""
    return {"Begins with": f"`{source.reference}`"} if source else {}


def about_set(config: TrainVariantsConfig) -> dict[str, str]:
    """Return the lines of the description of a set of variants."""
    sources = ", ".join(f"`{Path(one.path).name}`" for one in config.data.sources)
    base = config.base_model.hub_id or config.base_model.source
    return {"Data": sources, "Base": f"`{base}`", "Prefect run": link_to_prefect()}


def about_data(data: DataRecord) -> dict[str, str]:
    """Return the lines of a description that say which rows were learned and which held out."""
    held_out = {"Held-out rows": _rows(data.eval)} if data.eval else {}
    return {"Data": _rows(data.train), **held_out}


def _rows(split: SplitRecord) -> str:
    parts = (
        f"`{Path(part.source).name or part.source}`, {part.num_rows:,} rows{part.made_of}"
        for part in split.by_source
    )
    return "; ".join(parts)


def publish_link(run: RunRecord) -> None:
    """Publish the link to the MLflow run as an artifact of the flow run, unless it has one.

    A run of a store without a server has no address: its artifact has the command that shows it. A
    failure to publish it is logged, and fails nothing.
    """
    try:
        if mlflow_run_id(run) and not _has_link():
            _create_link(run)
    except Exception as error:  # noqa: BLE001 - a run must not fail for a link
        logger().warning("the link to the MLflow run can't be published in Prefect: %s", error)


def _has_link() -> bool:
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(any_=[_LINK]),
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(flow_run.get_id()))]),
    )
    with get_client(sync_client=True) as client:
        return bool(client.read_artifacts(artifact_filter=wanted, limit=1))


def _create_link(run: RunRecord) -> None:
    about = "The run's curves, answers and files in MLflow"
    if url := run_url(run):
        text = f"MLflow run {run.run_name}"
        create_link_artifact(link=url, link_text=text, key=_LINK, description=about)
        return
    markdown = (
        f"The MLflow run `{mlflow_run_id(run)}` of the experiment `{run.experiment}` is in a store "
        f"without a server. This command shows it:\n\n```text\n{ui_command(run)}\n```\n"
    )
    create_markdown_artifact(markdown=markdown, key=_LINK, description=about)
