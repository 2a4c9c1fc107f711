"""At the end of a retraining: publish the new champion to the server, if there is one."""

import shlex

from tasks.config import ServingSettings, TrackingSettings
from tasks.durability.step import step
from tasks.records import PublishedRecord, RunRecord, ServingOutcome, VersionRecord
from tasks.runtime import events
from tasks.runtime.progress import logger
from tasks.serving.publication_event import publication_event
from tasks.serving.publishing import publish


@step
def publish_adapter(
    version: VersionRecord, settings: ServingSettings, run: RunRecord
) -> PublishedRecord:
    """Publish the version to the server, and send the event of what came of it.

    Raises:
        UserError: vLLM can't serve the adapter, or there is no vLLM server that loads adapters.
        PassingError: the server, MLflow or Prefect can't be reached.
    """
    record = publish(version.uri, settings, TrackingSettings(uri=run.tracking_uri))
    events.send([publication_event(record, run.flow_run_id)])
    if record.outcome is ServingOutcome.PUBLISHED:
        logger().info("%s serves %s: %s", record.url, record.served_as, record.reason)
    else:
        logger().warning("%s is not published: %s", record.served_as, record.reason)
    return record


def publish_command(uri: str, settings: ServingSettings, tracking_uri: str | None = None) -> str:
    """Return the command that publishes a version later.

    Args:
        uri: of the version.
        settings: the server.
        tracking_uri: of the MLflow store, if it is not the default.
    """
    words = ["adapterflow", "publish", uri, "--to", str(settings.url)]
    words += ["--folder", settings.folder] if settings.folder else []
    words += ["--tracking-uri", tracking_uri] if tracking_uri else []
    return shlex.join(words)
