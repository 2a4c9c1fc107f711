"""Step 2 of 6: configure LoRA, with every choice written out."""

from tasks import engine
from tasks.config import LoraSettings
from tasks.durability.step import step
from tasks.records import BaseModelRecord, LoraRecord, RunRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def configure_lora(
    settings: LoraSettings, base: BaseModelRecord, seed: int, run: RunRecord
) -> LoraRecord:
    """Resolve the LoRA configuration for this base, and count the parameters that it will train.

    Raises:
        UserError: a name in `target_modules` or `modules_to_save` matches nothing.
    """
    record = engine.configure_lora(settings, base, seed)
    Tracker(run).log_params(_params(record))
    for warning in record.warnings:
        logger().warning(warning)
    logger().info(
        "rank %s, alpha %g, on %s",
        record.peft_config.r,
        record.peft_config.lora_alpha,
        ", ".join(f"{count} {name}" for name, count in record.matches.per_target.items()),
    )
    return record


def _params(record: LoraRecord) -> dict[str, object]:
    fields = record.peft_config.to_json()
    config = {f"lora/{key}": value for key, value in fields.items() if value is not None}
    return {
        "lora/adapter_name": record.adapter_name,
        **config,
        "lora/warnings": "; ".join(record.warnings) or None,
        "seed": record.seed,
    }
