"""After the six steps: register the adapter as a version, with its lineage."""

from tasks.config import RegistrySettings
from tasks.durability.shown_run import about_data, about_source
from tasks.durability.step import step
from tasks.errors import PassingError
from tasks.records import CheckedRecord, DataRecord, RunRecord, SavedRecord, VersionRecord
from tasks.retraining.lineage import lineage, package_versions
from tasks.runtime.links import link_to_prefect
from tasks.runtime.progress import logger
from tasks.tracking import OUTCOME_TAG, Registry, Tracker, mlflow_run_id


@step
def register_adapter(
    saved: SavedRecord,
    data: DataRecord,
    checked: CheckedRecord,
    settings: RegistrySettings,
    run: RunRecord,
) -> VersionRecord:
    """Register the adapter as the challenger; repeated attempts make no second version.

    Raises:
        PassingError: the registry can't be reached.
    """
    tracker = Tracker(run)
    tracker.log_text(package_versions(), "package_versions.txt")
    source = tracker.log_adapter(saved)
    if source is None:
        raise PassingError(
            f"can't register the adapter: MLflow at {run.tracking_uri} can't be reached"
        )
    registry = Registry(run.tracking_uri, settings.name)
    tags = lineage(data, saved, checked, run)
    version = registry.register(source, mlflow_run_id(run), tags)
    if OUTCOME_TAG not in version.tags:
        base = f"`{saved.base.reference}`"
        origin = {**about_data(data), "Base": base, **about_source(checked.source)}
        origin["Prefect run"] = link_to_prefect()
        registry.describe(version.version, {**origin, "Decision": "not decided yet"})
    logger().info("registered as %s, the challenger", version.uri)
    return version
