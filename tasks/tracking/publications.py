"""The record in MLflow of each try to publish a version to a server."""

from tasks.records import PublishedRecord, ServingOutcome, VersionRecord
from tasks.tracking.offline import outages
from tasks.tracking.registered_versions import set_tags, utc_now
from tasks.tracking.store import store_client

_GROUP = "serving."


def record_publication(uri: str, version: VersionRecord, record: PublishedRecord) -> None:
    """Record a try with the version, in its tag `serving`, and as a file of its run.

    Args:
        uri: of the store.
        version: that was to be published.
        record: what came of it.

    Raises:
        UserError: MLflow refuses.
        PassingError: MLflow can't be reached.
    """
    now = utc_now()
    tags = {
        "url": record.url,
        "as": record.served_as,
        "folder": record.folder,
        "outcome": record.outcome.value,
        "reason": record.reason,
        "server": record.server,
        "at": now,
    }
    with outages.explained(f"MLflow's registry at {uri}"):
        client = store_client(uri)
        if version.run_id:
            file = f"serving/{record.served_as}-{now.replace(':', '')}.json"
            client.log_text(version.run_id, record.model_dump_json(indent=1), file)
        named = {f"{_GROUP}{key}": value for key, value in tags.items()}
        set_tags(client, version.name, version.version, named)


def published_to(version: VersionRecord) -> str | None:
    """Return the address of the server that a version was published to last; None if to none."""
    is_published = version.tags.get(f"{_GROUP}outcome") == ServingOutcome.PUBLISHED
    return version.tags.get(f"{_GROUP}url") if is_published else None


def served_from(version: VersionRecord) -> str | None:
    """Return the folder in which that server finds adapters; None if it was not published."""
    return version.tags.get(f"{_GROUP}folder")


def published_at(version: VersionRecord) -> str:
    """Return when it was published, as text that sorts by time; empty if it was not."""
    return version.tags.get(f"{_GROUP}at", "") if published_to(version) else ""
