"""After the variants: register adapters in MLflow, as challengers of their models."""

from tasks.config import Score
from tasks.durability.step import step
from tasks.errors import PassingError
from tasks.records import Record, RunRecord, VariantResult
from tasks.runtime.progress import logger
from tasks.tracking import FLOW_RUN_TAG, SET_TAG, VARIANT_TAG, Registry
from tasks.variants.comparison import best_of


class RegisteredRecord(Record):
    """The versions of a set."""

    versions: dict[str, int]
    """By the registered model's name."""


@step
def register_variants(
    results: tuple[VariantResult, ...],
    name: str,
    column: str | None,
    metric: Score,
    run: RunRecord,
) -> RegisteredRecord:
    """Register the best adapter, or each of a set that is split by a column; idempotent.

    Raises:
        PassingError: the registry can't be reached, or an adapter still waits to be shipped to it.
    """
    best = best_of(results, metric)
    chosen = [one for one in results if one.error is None and (column or one.name == best)]
    versions: dict[str, int] = {}
    for one in chosen:
        if one.model_uri is None:
            raise PassingError(
                f"can't register the adapter of {one.name}: MLflow at {run.tracking_uri} could not "
                "be reached when it was logged; ship it with adapterflow ship"
            )
        model = f"{name}-{one.name}" if column else name
        tags = {
            VARIANT_TAG: one.name,
            SET_TAG: run.flow_run_id,
            FLOW_RUN_TAG: one.flow_run_id,
            f"variant.{metric.value}": str(one.score),
        }
        version = Registry(run.tracking_uri, model).register(one.model_uri, one.mlflow_run_id, tags)
        versions[model] = version.version
        logger().info("registered %s as %s, the challenger", one.name, version.uri)
    return RegisteredRecord(versions=versions)
