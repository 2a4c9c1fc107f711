"""The training flow: validated inputs, six steps, a report.

Each step takes the records of those before it and can be retried on its own.
"""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.config import TrainAdapterConfig
from tasks.configure_lora import configure_lora
from tasks.durability.device_slot import device_slot
from tasks.durability.kept_results import RecordSerializer, keep_results_atomically
from tasks.durability.redo import redoing
from tasks.durability.run_names import namer
from tasks.durability.shared_storage import check_own_proof
from tasks.durability.step_name import StepName
from tasks.durability.tracked_run import being_alive, tracked_run
from tasks.durability.unchanged import trained_before
from tasks.engine.base import bases_on_host
from tasks.errors import UserError
from tasks.inject_adapter import inject_adapter
from tasks.launching import num_gpus_here
from tasks.load_adapter import load_adapter
from tasks.load_base_model import load_base_model
from tasks.publish_report import publish_report
from tasks.records import InputsRecord, ReportRecord, RunRecord
from tasks.runtime.run_log import prepare_run_log
from tasks.save_adapter import save_adapter
from tasks.train_adapter import train_adapter as train
from tasks.validate_inputs import validate_inputs


@flow(
    name="train-adapter",
    flow_run_name=namer(TrainAdapterConfig),
    persist_result=True,
    result_serializer=RecordSerializer(),
)
def train_adapter(
    config: TrainAdapterConfig,
    redo_from: StepName | None = None,
    skip_unchanged: bool = False,  # noqa: FBT001, FBT002 - Prefect passes parameters by name
) -> ReportRecord | State[ReportRecord]:
    """Turn a base model and examples into a verified, tracked LoRA adapter.

    Args:
        config: the base, the examples and the settings.
        redo_from: in a resumed run, run this step and those after it again, although their records
            are persisted; the training then starts from its first row. A retry of the run does not
            redo them once more.
        skip_unchanged: train nothing if a finished run of the experiment had the same data and
            configuration.
    """
    prepare_run_log()
    keep_results_atomically()
    try:
        check_own_proof(config)
        with being_alive(config) as folder:
            inputs = validate_inputs(config, folder)
            if skip_unchanged and (earlier := trained_before(config, inputs)):
                return _skipped(earlier)
            with device_slot(num_gpus_here(config.launch)):
                # Once more: the run that had the device before may just have trained it.
                if skip_unchanged and (earlier := trained_before(config, inputs)):
                    return _skipped(earlier)
                with tracked_run(config, inputs) as run, redoing(run, redo_from):
                    return six_steps(config, inputs, run)
    except UserError as mistake:
        # As the state's message it is what the UI shows: the user needs no traceback.
        return Failed(message=str(mistake), data=mistake)


def six_steps(config: TrainAdapterConfig, inputs: InputsRecord, run: RunRecord) -> ReportRecord:
    """Run the six steps on validated inputs, and publish the report."""
    data = inputs.data
    with bases_on_host(needed=config.launch.shards):
        base = load_base_model(config.base_model, data, run)
        lora = configure_lora(inputs.lora, base, config.seed, run)
        injected = inject_adapter(lora, run)
        trained = train(injected, data, config.training, config.launch, run)
        saved = save_adapter(trained, data, config.output, run)
        loaded = load_adapter(saved, data, config.inference, run)
    report: ReportRecord = publish_report(data, trained, loaded, run)
    return report


def _skipped(earlier: str) -> State[ReportRecord]:
    reason = f"data and configuration are those of the MLflow run {earlier}: nothing to train"
    return Completed(name="Skipped", message=reason)
