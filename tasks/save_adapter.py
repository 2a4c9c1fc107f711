"""Step 5 of 6: save the adapter alone, and prove it on a fresh base."""

from functools import partial
from pathlib import Path

from tasks.config import OutputSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.adapters.model_card import write_card
from tasks.engine.adapters.saving import adapter_files
from tasks.engine.adapters.saving import save_adapter as save_and_prove
from tasks.engine.base.hub import push_adapter
from tasks.records import DataRecord, RunRecord, SavedRecord, TrainedRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def save_adapter(
    trained: TrainedRecord, data: DataRecord, settings: OutputSettings, run: RunRecord
) -> SavedRecord:
    """Save the adapter to its own folder, and push it to the Hub where that is asked for.

    Raises:
        VerificationError: what was saved is not what was trained.
        AdapterflowError: the push failed; the folder is complete.
    """
    model = workbench.take(trained)
    live_logits = probe_logits(model)
    card = write_card(trained, data, settings)
    files = adapter_files(model, trained, data.template, card)
    del model  # the fresh base of the proof takes its place in memory
    folder = run.folder / "adapters" / files.name
    record = save_and_prove(files, folder, live_logits, _push(settings))
    _report(record, Tracker(run))
    return record


def _push(settings: OutputSettings) -> "partial[str] | None":
    if not settings.push_to_hub:
        return None
    return partial(push_adapter, repo_id=settings.push_to_hub, private=settings.private)


def _report(record: SavedRecord, tracker: Tracker) -> None:
    tracker.log_params(
        {
            "adapter/folder": record.folder,
            "adapter/weights_sha256": record.weights.sha256,
            "adapter/hub_url": record.hub_url,
        }
    )
    tracker.log_metrics(
        {
            "adapter/bytes": record.adapter_bytes,
            "adapter/round_trip_logit_difference": record.round_trip_logit_difference,
        }
    )
    for remark in record.remarks:
        logger().warning(remark)
    logger().info("%s: %s", _relative(record.folder), _size(record))


def _size(record: SavedRecord) -> str:
    per_parameter = record.adapter_bytes / record.num_adapter_parameters
    return (
        f"{record.weights.size_bytes / 1e6:.1f} MB = {record.num_adapter_parameters:,} parameters "
        f"x {per_parameter:g} bytes + {record.header_bytes:,} bytes of header; on a fresh base it "
        f"changes logits by {record.round_trip_logit_difference:g}"
    )


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
