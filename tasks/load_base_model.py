"""Step 1 of 6: load the base model, frozen."""

from tasks import engine
from tasks.config import BaseModelSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.records import BaseModelRecord, DataRecord, RunRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def load_base_model(
    settings: BaseModelSettings, data: DataRecord, run: RunRecord
) -> BaseModelRecord:
    """Load the base model as the settings say, and record what identifies it.

    For classification, the output layer gets one output for each of the data's classes.

    Raises:
        UserError: the model does not exist, or can't be loaded as the settings say.
    """
    model, record = engine.load_base(settings, data.labels)
    workbench.put(record, model)
    Tracker(run).log_params(_params(record))
    logger().info(
        "%s (%s): %.1f M parameters, %s%s, %.0f MB",
        record.reference,
        record.architecture,
        record.num_parameters / 1e6,
        record.dtype,
        "" if settings.quantization == "none" else f" in {settings.quantization}",
        record.num_bytes / 1e6,
    )
    return record


def _params(record: BaseModelRecord) -> dict[str, object]:
    return {
        "base_model/source": record.settings.source,
        "base_model/task": record.settings.task.value,
        "base_model/labels": ", ".join(record.labels) or None,
        "base_model/reference": record.reference,
        "base_model/revision": record.revision,
        "base_model/fingerprint": record.fingerprint,
        "base_model/architecture": record.architecture,
        "base_model/dtype": record.dtype,
        "base_model/quantization": record.settings.quantization.value,
        "base_model/gradient_checkpointing": record.settings.gradient_checkpointing,
        "base_model/num_parameters": record.num_parameters,
        "base_model/num_bytes": record.num_bytes,
    }
