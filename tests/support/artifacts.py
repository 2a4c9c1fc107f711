"""The artifacts of a flow run in Prefect."""

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact


def artifacts_of(flow_run_id: str) -> list[Artifact]:
    """Read a run's artifacts; those of all runs of the tests' server are more than one page."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=wanted)
