"""Step 6 of 6: load the saved adapter on a fresh base, and compare the answers of both."""

from tasks import engine
from tasks.config import InferenceSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.engine.base import give_back
from tasks.engine.scoring import judge
from tasks.records import DataRecord, LoadedRecord, RunRecord, SavedRecord
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker


@step
def load_adapter(
    saved: SavedRecord, data: DataRecord, settings: InferenceSettings, run: RunRecord
) -> LoadedRecord:
    """Load the saved adapter as a user would, and let base and adapter answer held-out rows.

    Raises:
        VerificationError: the loaded adapter has no effect on the base.
    """
    with progress("answer") as shown:
        model = workbench.take(saved.base)
        record = engine.load_adapter(model, saved, data, settings, shown.at)
        give_back(model)
    _report(record, Tracker(run))
    return record


def _report(record: LoadedRecord, tracker: Tracker) -> None:
    judged = judge(record)
    if judged is None or record.base_exact_match is None or record.adapter_exact_match is None:
        logger().info("loaded; the adapter changes logits by up to %.2f", record.logit_effect)
        return
    tracker.log_numbers(
        {
            "eval/base_exact_match": record.base_exact_match,
            "eval/adapter_exact_match": record.adapter_exact_match,
        }
    )
    tracker.log_table([sample.model_dump() for sample in record.samples], "samples.json")
    tracker.set_tags({"result": judged.text})
    logger().info(judged.text)
