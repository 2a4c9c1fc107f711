"""The training flow with a form of six fields."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.train_adapter import train_adapter
from tasks.config import QuickTraining
from tasks.durability.kept_results import RecordSerializer
from tasks.durability.run_names import namer
from tasks.records import ReportRecord


# Of the same name: for whoever lists, resumes or watches runs it is the training flow.
@flow(
    name=train_adapter.name,
    flow_run_name=namer(QuickTraining),
    persist_result=True,
    result_serializer=RecordSerializer(),
)
def quick_training(config: QuickTraining) -> ReportRecord | State[ReportRecord]:
    """Turn a base model and examples into a verified, tracked LoRA adapter.

    Args:
        config: the six settings that most trainings differ in.
    """
    result: ReportRecord | State[ReportRecord] = train_adapter.fn(config.expanded())
    return result
