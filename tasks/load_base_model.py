"""Step 1 of 6: load the base model, frozen."""

from tasks import engine
from tasks.config import BaseModelSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.engine.base import base_sha256
from tasks.errors import UserError
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
        UserError: the model does not exist, can't be loaded as the settings say, or is no longer
            the one that the inputs were validated for.
    """
    model, record = engine.load_base(settings, data.labels)
    # A run may wait for its device for hours, and a branch on the Hub or a folder change meanwhile.
    if base_sha256(record) != data.base_sha256:
        raise UserError(
            f"the base model {record.reference} has changed since this run validated its inputs, "
            "so tokens and LoRA configuration may not fit it; start a new run "
            "(base_model.revision pins a model of the Hub to a commit)"
        )
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
