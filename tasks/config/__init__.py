"""All settings: one module per section, all of them frozen pydantic models.

A field's docstring is its text in `docs/configuration.md` and in Prefect's form.
"""

from tasks.config.adapter import AdapterSettings
from tasks.config.base_model import BaseModelSettings, Dtype, Quantization, Task
from tasks.config.corrections import CorrectionForm, CorrectionsConfig
from tasks.config.data import (
    JUDGED,
    PREFERENCES,
    DataSettings,
    DataSource,
    LossOn,
    OnLostAnswer,
    RowFormat,
    Template,
    Turns,
)
from tasks.config.decision import (
    ApprovalSettings,
    DecisionSettings,
    OlderRowsSettings,
    OnTimeout,
)
from tasks.config.evaluation import AnswerKind, EvaluationSettings, OnLeakage
from tasks.config.harness import HarnessSettings
from tasks.config.inference import InferenceSettings
from tasks.config.launch import LaunchSettings
from tasks.config.lora import Bias, LoraInit, LoraSettings
from tasks.config.output import OutputSettings
from tasks.config.predict_batch import PredictBatchConfig
from tasks.config.preferences import LearningObjective, LossType, PreferenceSettings
from tasks.config.quick_training import QuickTraining
from tasks.config.registry import RegistrySettings
from tasks.config.retrain_adapter import RetrainAdapterConfig
from tasks.config.serving import ServingSettings
from tasks.config.tracking import TrackingSettings
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.config.train_variants import TrainVariantsConfig
from tasks.config.training import Batching, Scheduler, TrainingSettings
from tasks.config.variants import (
    ListedVariant,
    OnTooFew,
    RunOn,
    Score,
    SearchRange,
    SearchSettings,
    SplitSettings,
    VariantsSettings,
)

__all__ = [
    "JUDGED",
    "PREFERENCES",
    "AdapterSettings",
    "AnswerKind",
    "ApprovalSettings",
    "BaseModelSettings",
    "Batching",
    "Bias",
    "CorrectionForm",
    "CorrectionsConfig",
    "DataSettings",
    "DataSource",
    "DecisionSettings",
    "Dtype",
    "EvaluationSettings",
    "HarnessSettings",
    "InferenceSettings",
    "LaunchSettings",
    "LearningObjective",
    "ListedVariant",
    "LoraInit",
    "LoraSettings",
    "LossOn",
    "LossType",
    "OlderRowsSettings",
    "OnLeakage",
    "OnLostAnswer",
    "OnTimeout",
    "OnTooFew",
    "OutputSettings",
    "PredictBatchConfig",
    "PreferenceSettings",
    "Quantization",
    "QuickTraining",
    "RegistrySettings",
    "RetrainAdapterConfig",
    "RowFormat",
    "RunOn",
    "Scheduler",
    "Score",
    "SearchRange",
    "SearchSettings",
    "ServingSettings",
    "SplitSettings",
    "Task",
    "Template",
    "TrackingSettings",
    "TrainAdapterConfig",
    "TrainVariantsConfig",
    "TrainingSettings",
    "Turns",
    "VariantsSettings",
]
