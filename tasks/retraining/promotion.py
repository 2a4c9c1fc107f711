"""What every promotion has, whether a decision or a person makes it: its event, and its command."""

from collections.abc import Mapping

from prefect.events import Event, RelatedResource, Resource

from tasks.records import VersionRecord


def promote_command(version: VersionRecord) -> str:
    """Return the command by which a person promotes a version, whatever was decided on it."""
    return f"adapterflow promote {version.name} {version.version} --reason TEXT"


def decision_event(
    version: VersionRecord,
    *,
    is_promoted: bool,
    reason: str,
    scores: Mapping[str, Mapping[str, float]],
    flow_run_id: str | None,
) -> Event:
    """Return the event `adapterflow.adapter.promoted` or `.rejected`.

    Args:
        version: the version.
        is_promoted: whether it became champion.
        reason: why, in words.
        scores: of each model, by metric.
        flow_run_id: the flow run that made the version; None if it is not known.
    """
    labels = {
        "prefect.resource.id": f"adapterflow.adapter.{version.name}",
        "prefect.resource.name": version.name,
    }
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
        "prefect.resource.role": "flow-run",
    }
    return Event(
        event=f"adapterflow.adapter.{'promoted' if is_promoted else 'rejected'}",
        resource=Resource(labels),
        related=[RelatedResource(flow_run)] if flow_run_id else [],
        payload={
            "version": version.version,
            "uri": version.uri,
            "reason": reason,
            "scores": {name: dict(one) for name, one in scores.items()},
        },
    )
