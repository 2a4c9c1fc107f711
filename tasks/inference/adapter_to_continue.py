"""The adapter that a training begins with, in a folder, on the Hub or in MLflow; and its rows."""

from pathlib import Path

from pydantic import ValidationError

from tasks.config import LoraSettings, TrackingSettings
from tasks.durability.tracked_run import ROWS_FILE
from tasks.engine.adapters import describe_source, find_adapter, find_source, keep_source
from tasks.errors import UserError
from tasks.records import LearnedData, SourceRecord
from tasks.tracking import fetched_adapter, is_mlflow_uri, pinned_adapter, text_of_run


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


def learned_by(source: SourceRecord, tracking: TrackingSettings) -> LearnedData:
    """Return how the rows that an adapter learned from can be read again, for `data.replay`.

    Args:
        source: the adapter to begin with.
        tracking: which MLflow store.

    Raises:
        UserError: it is not from MLflow, or its run does not say so.
        PassingError: MLflow can't be reached.
    """
    if source.mlflow_run_id is None:
        raise UserError(
            f"data.replay needs an adapter whose run is in MLflow, which records where its rows "
            f"are; lora.from is {source.given}: name it as models:/… or runs:/…, or remove "
            "data.replay"
        )
    written = text_of_run(source.mlflow_run_id, ROWS_FILE, tracking)
    try:
        return LearnedData.model_validate_json(written or "")
    except ValidationError as error:
        raise UserError(
            f"data.replay: the run {source.mlflow_run_id}, which trained {source.given}, does not "
            "say how its rows are read, as one of an earlier version; add its rows to data.train, "
            "or remove data.replay"
        ) from error
