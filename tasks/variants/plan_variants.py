"""Before the variants: what they are, found from the configuration and the data alone."""

from tasks.config import TrainVariantsConfig
from tasks.durability.step import step
from tasks.records import PlanRecord
from tasks.runtime.progress import logger
from tasks.variants.expansion import planned


@step
def plan_variants(config: TrainVariantsConfig) -> PlanRecord:
    """List the variants, once for all attempts: a resumed set trains the same.

    Raises:
        UserError: a variant can't work, or the data can't be split as configured.
    """
    plan = planned(config)
    logger().info("%s", plan_text(plan))
    if plan.left_out:
        logger().warning("%s", left_out_text(plan))
    return plan


def plan_text(plan: PlanRecord) -> str:
    """Describe how many variants there are, and of how many rows."""
    if not plan.num_rows:
        return f"{plan.num_variants:,} variants"
    counts = plan.num_rows.values()
    return f"{plan.num_variants:,} variants of {min(counts):,} to {max(counts):,} rows"


def left_out_text(plan: PlanRecord) -> str:
    """Describe the rows that no variant trains on."""
    return (
        f"{sum(plan.left_out.values()):,} rows are in no variant: {len(plan.left_out):,} values of "
        "the column have too few rows, or none"
    )
