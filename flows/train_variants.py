"""The flow of many trainings over one base: a plan, a flow run for each variant, a comparison."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.variants.places import check_place
from flows.variants.training import train_all
from tasks.config import TrainVariantsConfig
from tasks.durability.kept_results import RecordSerializer, keep_results_atomically
from tasks.durability.run_names import namer
from tasks.durability.tracked_run import being_alive, tracked_set
from tasks.errors import PartialFailureError, UserError
from tasks.records import RunRecord, VariantResult, VariantsRecord
from tasks.runtime.run_log import prepare_run_log
from tasks.variants.plan_variants import plan_variants
from tasks.variants.publish_variants import publish_variants
from tasks.variants.register_variants import register_variants

_SHOWN_FAILURES = 3


@flow(
    name="train-variants",
    flow_run_name=namer(TrainVariantsConfig),
    persist_result=True,
    result_serializer=RecordSerializer(),
)
def train_variants(config: TrainVariantsConfig) -> VariantsRecord | State[VariantsRecord]:
    """Train many adapters on one base: a list, a grid, a search, or one for each value of a column.

    Args:
        config: a training's configuration, and how its variants differ.
    """
    prepare_run_log()
    keep_results_atomically()
    try:
        with being_alive(config):
            check_place(config)
            plan = plan_variants(config)
            with tracked_set(config) as run:
                results = train_all(config, plan, run)
                record = _published(config, results, run)
                _check(record)
                return record
    except (UserError, PartialFailureError) as mistake:
        # As the state's message it is what the UI shows: the user needs no traceback.
        return Failed(message=str(mistake), data=mistake)


def _published(
    config: TrainVariantsConfig, results: tuple[VariantResult, ...], run: RunRecord
) -> VariantsRecord:
    given = config.variants
    column = given.split_by.column if given.split_by else None
    metric = given.metric
    registered: dict[str, int] = {}
    # The best of some may not be the best of all.
    is_decided = column or all(one.error is None for one in results)
    if given.register_as and is_decided:
        registered = register_variants(results, given.register_as, column, metric, run).versions
    base = config.base_model.hub_id or config.base_model.source
    record: VariantsRecord = publish_variants(results, base, column, metric, registered, run)
    return record


def _check(record: VariantsRecord) -> None:
    """Raise a PartialFailureError if a variant failed: the set did, and can be resumed."""
    if not record.failed:
        return
    first = "; ".join(f"{one.name}: {one.error}" for one in record.failed[:_SHOWN_FAILURES])
    more = "; …" if len(record.failed) > _SHOWN_FAILURES else ""
    raise PartialFailureError(
        f"{len(record.failed):,} of {len(record.variants):,} variants failed: {first}{more}"
    )
