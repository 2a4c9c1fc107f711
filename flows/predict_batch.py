"""The batch inference flow: a file of rows in, the same rows with their answers out."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from tasks.config import PredictBatchConfig
from tasks.durability.device_slot import device_slot
from tasks.durability.kept_results import RecordSerializer
from tasks.durability.run_names import namer
from tasks.errors import UserError
from tasks.inference.predict_batch import predict_batch as predict
from tasks.records import PredictionRecord
from tasks.runtime.run_log import prepare_run_log


@flow(
    name="predict-batch",
    flow_run_name=namer(PredictBatchConfig),
    persist_result=True,
    result_serializer=RecordSerializer(),
)
def predict_batch(config: PredictBatchConfig) -> PredictionRecord | State[PredictionRecord]:
    """Answer a file of rows with one or several adapters on one base.

    Args:
        config: the adapters, the rows, and where the answers go.
    """
    prepare_run_log()
    try:
        with device_slot():
            record: PredictionRecord = predict(config)
    except UserError as mistake:
        # As the state's message it is what the UI shows: the user needs no traceback.
        return Failed(message=str(mistake), data=mistake)
    return record
