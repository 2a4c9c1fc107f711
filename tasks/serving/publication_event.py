"""The event of each try to publish a version, for alerts and automations."""

from prefect.events import Event, RelatedResource, Resource

from tasks.records import PublishedRecord, ServingOutcome

_MAX_ROWS = 20


def publication_event(record: PublishedRecord, flow_run_id: str | None = None) -> Event:
    """Return the event `adapterflow.adapter.published` or `.unpublished`.

    Args:
        record: what came of the try.
        flow_run_id: the flow run that published; None for a command.
    """
    name = record.served_as.rpartition("-")[0]
    is_published = record.outcome is ServingOutcome.PUBLISHED
    labels = {
        "prefect.resource.id": f"adapterflow.adapter.{name}",
        "prefect.resource.name": name,
    }
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
        "prefect.resource.role": "flow-run",
    }
    return Event(
        event=f"adapterflow.adapter.{'published' if is_published else 'unpublished'}",
        resource=Resource(labels),
        related=[RelatedResource(flow_run)] if flow_run_id else [],
        payload={
            "version": int(record.served_as.rpartition("-")[2]),
            "uri": record.uri,
            "served_as": record.served_as,
            "url": record.url,
            "outcome": record.outcome.value,
            "reason": record.reason,
            "rows": [one.model_dump(mode="json") for one in record.differing[:_MAX_ROWS]],
        },
    )
