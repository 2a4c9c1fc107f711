"""Step 5 of 6: save the adapter alone, and verify it on a fresh base."""

from pathlib import Path

from tasks import engine
from tasks.config import OutputSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.records import DataRecord, RunRecord, SavedRecord, TrainedRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def save_adapter(
    trained: TrainedRecord, data: DataRecord, settings: OutputSettings, run: RunRecord
) -> SavedRecord:
    """Save the adapter to its own folder, and push it to the Hub if the settings say so.

    Raises:
        VerificationError: the saved adapter differs from the trained one.
        AdapterflowError: the push failed; the folder is complete nevertheless.
    """
    folder = run.folder / "adapters" / trained.injected.lora.adapter_name
    # The model is passed without keeping a reference: its memory is needed for the fresh base.
    record = engine.save_adapter(workbench.take(trained), trained, data, settings, folder)
    _report(record, Tracker(run))
    return record


def _report(record: SavedRecord, tracker: Tracker) -> None:
    tracker.log_params(
        {
            "adapter/folder": record.folder,
            "adapter/weights_sha256": record.weights.sha256,
            "adapter/hub_url": record.hub_url,
        }
    )
    tracker.log_numbers(
        {
            "adapter/bytes": record.adapter_bytes,
            "adapter/round_trip_logit_difference": record.round_trip_logit_difference,
        }
    )
    for warning in record.warnings:
        logger().warning(warning)
    logger().info("%s: %s", _relative(record.folder), _size(record))


def _size(record: SavedRecord) -> str:
    per_parameter = record.adapter_bytes / record.num_adapter_parameters
    return (
        f"{record.weights.size_bytes / 1e6:.1f} MB = {record.num_adapter_parameters:,} parameters "
        f"x {per_parameter:g} bytes + {record.header_bytes:,} bytes of header; on a fresh base its "
        f"logits differ by {record.round_trip_logit_difference:g}"
    )


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
