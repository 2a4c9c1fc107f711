"""Step 3 of 6: inject the adapter into the base, and verify where it begins."""

from tasks import engine
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.records import InjectedRecord, LoraRecord, RunRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def inject_adapter(lora: LoraRecord, run: RunRecord) -> InjectedRecord:
    """Add an adapter to the base: a fresh one, or one with the weights of `lora.from`.

    Raises:
        VerificationError: the adapter is missing in a target module, the fresh adapter changed the
            base's outputs, or the other one does not have the outputs of its source.
    """
    # Records hold no tensors: the workbench passes the model from step to step, and rebuilds it
    # from the record in a process that has not run the earlier steps.
    model = workbench.take(lora.base)
    file = run.folder / "initial" / f"{lora.adapter_name}.safetensors"
    record = engine.inject_adapter(model, lora, file)
    workbench.put(record, model)
    share = record.num_trainable_parameters / record.num_total_parameters
    tracker = Tracker(run)
    tracker.log_params(
        {
            "adapter/trainable_parameters": record.num_trainable_parameters,
            "adapter/total_parameters": record.num_total_parameters,
            "adapter/layers_per_target": record.layers.per_target,
            "adapter/layers_per_layer": record.layers.per_layer,
            "adapter/base_checksum": record.base_checksum,
        }
    )
    tracker.log_numbers(
        {
            "adapter/trainable_share": share,
            **_differences(record),
        }
    )
    if not record.starts_at_base and not lora.source:
        logger().warning(
            "%s does not start at the base's answers: the untrained adapter changes logits by %g",
            record.lora.peft_config.method,
            record.logit_difference,
        )
    logger().info(
        "%s of %s parameters are trainable (%.2f %%); %s",
        f"{record.num_trainable_parameters:,}",
        f"{record.num_total_parameters:,}",
        100 * share,
        _start(record),
    )
    return record


def _differences(record: InjectedRecord) -> dict[str, float]:
    """Return how far the adapter begins from where it should, by the name for MLflow."""
    if record.source_logit_difference is None:
        return {"adapter/fresh_logit_difference": record.logit_difference}
    return {"adapter/source_logit_difference": record.source_logit_difference}


def _start(record: InjectedRecord) -> str:
    """Describe where the adapter begins."""
    source = record.lora.source
    if source is None:
        return f"the fresh adapter changes logits by {record.logit_difference:g}"
    return (
        f"it begins with {source.reference}, whose logits differ by "
        f"{record.source_logit_difference:g}"
    )
