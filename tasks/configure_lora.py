"""Step 2 of 6: configure LoRA, with every choice written out."""

from tasks import engine
from tasks.durability.step import step
from tasks.records import (
    BaseModelRecord,
    LoraConfigRecord,
    LoraRecord,
    PeftConfigRecord,
    ResolvedLora,
    RunRecord,
)
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def configure_lora(
    resolved: ResolvedLora, base: BaseModelRecord, seed: int, run: RunRecord
) -> LoraRecord:
    """Record the adapter's configuration for the loaded base.

    `validate_inputs` resolved it, so that a mistake in it is found before a weight is loaded.
    """
    record = engine.configure_lora(resolved, base, seed)
    Tracker(run).log_params(_params(record))
    for warning in record.warnings:
        logger().warning(warning)
    for note in record.notes:
        logger().info(note)
    targets = ", ".join(f"{count} {name}" for name, count in record.matches.per_target.items())
    logger().info("%s, on %s", _method(record.peft_config), targets)
    for setting, patterns in record.reached.items():
        counts = ", ".join(f"{pattern} {len(names)}" for pattern, names in patterns.items())
        logger().info("%s reaches: %s", setting, counts)
    return record


def _method(config: PeftConfigRecord) -> str:
    if isinstance(config, LoraConfigRecord):
        return f"rank {config.r}, alpha {config.lora_alpha:g}"
    return f"PEFT's method {config.method}, whose layers PEFT computes"


def _params(record: LoraRecord) -> dict[str, object]:
    fields = record.peft_config.to_json()
    config = {f"lora/{key}": value for key, value in fields.items() if value is not None}
    return {
        "lora/adapter_name": record.adapter_name,
        **config,
        "lora/reached": _counts(record) or None,
        "lora/warnings": "; ".join(record.warnings) or None,
        "seed": record.seed,
    }


def _counts(record: LoraRecord) -> dict[str, dict[str, int]]:
    """Return how many modules and parameters each pattern reaches, by setting."""
    return {
        setting: {pattern: len(names) for pattern, names in patterns.items()}
        for setting, patterns in record.reached.items()
    }
