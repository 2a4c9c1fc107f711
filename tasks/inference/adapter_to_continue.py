"""Find the adapter that a training begins with: in a folder, on the Hub, or in MLflow."""

from pathlib import Path

from tasks.config import LoraSettings, TrackingSettings
from tasks.engine.adapters import describe_source, find_adapter, find_source, keep_source
from tasks.records import SourceRecord
from tasks.tracking import fetched_adapter, is_mlflow_uri, pinned_adapter


def kept_source(
    lora: LoraSettings, tracking: TrackingSettings, folder: Path
) -> SourceRecord | None:
    """Find the adapter of `lora.from`, and copy it to a folder; None if it is not set.

    What an alias or a branch means is looked up only here: whatever it means later, the run has its
    own copy.

    Args:
        lora: the settings.
        tracking: which MLflow store.
        folder: for the copy; an existing one is replaced.

    Raises:
        UserError: there is no such adapter.
        PassingError: the Hub or MLflow can't be reached.
        UnwritableError: the copy can't be written.
    """
    given = lora.from_
    if given is None:
        return None
    if not is_mlflow_uri(given):
        return keep_source(find_source(given), folder)
    pinned = pinned_adapter(given, tracking)
    with fetched_adapter(pinned.uri, tracking) as path:
        found = describe_source(
            find_adapter(path, named=given),
            given,
            pinned.uri,
            learned=pinned.learned,
            mlflow_run_id=pinned.run_id,
        )
        return keep_source(found, folder)
