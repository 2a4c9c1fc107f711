"""The training flow: validated inputs, six steps, a report.

Each step takes the records of those before it and can be retried on its own.
"""

import shutil
from enum import StrEnum

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from tasks.config import TrainAdapterConfig
from tasks.configure_lora import configure_lora
from tasks.errors import UserError
from tasks.inject_adapter import inject_adapter
from tasks.load_adapter import load_adapter
from tasks.load_base_model import load_base_model
from tasks.publish_report import publish_report
from tasks.records import ReportRecord
from tasks.run_log import shorten_mistakes
from tasks.save_adapter import save_adapter
from tasks.step import redoing
from tasks.tracked_run import tracked_run
from tasks.train_adapter import train_adapter as train
from tasks.validate_inputs import validate_inputs


class StepName(StrEnum):
    """The six steps, in their order."""

    LOAD_BASE_MODEL = "load_base_model"
    CONFIGURE_LORA = "configure_lora"
    INJECT_ADAPTER = "inject_adapter"
    TRAIN_ADAPTER = "train_adapter"
    SAVE_ADAPTER = "save_adapter"
    LOAD_ADAPTER = "load_adapter"


@flow(name="train-adapter", persist_result=True, result_serializer="json")
def train_adapter(
    config: TrainAdapterConfig, redo_from: StepName | None = None
) -> ReportRecord | State[ReportRecord]:
    """Turn a base model and examples into a verified, tracked LoRA adapter.

    Args:
        config: which base, which examples, and how.
        redo_from: in a run that is gone on with, run this step and those after it anew, whatever
            is kept of them; the training then starts from its first row.
    """
    shorten_mistakes()
    try:
        with redoing(_from(redo_from)):
            return _six_steps(config, redo_from)
    except UserError as mistake:
        # The state carries the one message that the user needs, where the UI shows it.
        return Failed(message=str(mistake), data=mistake)


def _from(first: StepName | None) -> list[str]:
    names = list(StepName)
    return [*names[names.index(first) :], publish_report.name] if first else []


def _six_steps(config: TrainAdapterConfig, redo_from: StepName | None) -> ReportRecord:
    data = validate_inputs(config)
    with tracked_run(config, data) as run:
        if train.name in _from(redo_from):
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        base = load_base_model(config.base_model, run)
        lora = configure_lora(config.lora, base, config.seed, run)
        injected = inject_adapter(lora, run)
        trained = train(injected, data, config.training, run)
        saved = save_adapter(trained, data, config.output, run)
        loaded = load_adapter(saved, data, config.inference, run)
        report: ReportRecord = publish_report(data, trained, loaded, run)
    return report
