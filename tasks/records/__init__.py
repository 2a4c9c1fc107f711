"""What passes between steps: small frozen pydantic models that round-trip through JSON.

Import records from here. Prefect's persisted results name a record by the module of its class; a
class that moves is found again by its name (`tasks.durability.kept_results`).
"""

from tasks.records.base import BaseModelRecord, BaseSource
from tasks.records.chat import ChatOptions
from tasks.records.comparison import (
    BASE,
    CHALLENGER,
    CHAMPION,
    UNDECIDED,
    ChampionRecord,
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    GuardRecord,
    Outcome,
    RetrainedRecord,
    ScoredModel,
    VersionRecord,
)
from tasks.records.corrections import CorrectionsRecord
from tasks.records.data import DataRecord, LearnedData, OddRows, RowPlace, ShownRow, SplitRecord
from tasks.records.exports import CombinedRecord, GgufRecord, MergedRecord, QuantizedGap
from tasks.records.harness import HarnessModel, HarnessRecord, HarnessScore, HarnessTask
from tasks.records.inputs import InputsRecord
from tasks.records.lora import (
    AdaptedLayer,
    InjectedRecord,
    LoraConfigRecord,
    LoraRecord,
    PeftConfigRecord,
    ResolvedLora,
    TargetMatches,
)
from tasks.records.prediction import PredictionRecord
from tasks.records.record import FileRecord, Record
from tasks.records.report import ReportRecord
from tasks.records.run import RunRecord, checkpoints_in, source_in, tokens_in, variants_in
from tasks.records.saved import LoadedRecord, SampleRecord, SavedRecord
from tasks.records.serving import (
    REFERENCE_FILE,
    Probe,
    PublishedRecord,
    ReplayRow,
    ServedRow,
    ServingOutcome,
    ServingReference,
)
from tasks.records.source import LearnedRows, SourceRecord
from tasks.records.training import LearnedPreferences, LossPoint, TrainedRecord, TrainingPlan
from tasks.records.variants import (
    VARIANTS_FILE,
    PlanRecord,
    VariantRecord,
    VariantResult,
    VariantsRecord,
)

__all__ = [
    "BASE",
    "CHALLENGER",
    "CHAMPION",
    "REFERENCE_FILE",
    "UNDECIDED",
    "VARIANTS_FILE",
    "AdaptedLayer",
    "BaseModelRecord",
    "BaseSource",
    "ChampionRecord",
    "ChatOptions",
    "CheckedRecord",
    "CombinedRecord",
    "CorrectionsRecord",
    "DataRecord",
    "DecisionRecord",
    "EvaluatedRecord",
    "FileRecord",
    "GgufRecord",
    "GuardRecord",
    "HarnessModel",
    "HarnessRecord",
    "HarnessScore",
    "HarnessTask",
    "InjectedRecord",
    "InputsRecord",
    "LearnedData",
    "LearnedPreferences",
    "LearnedRows",
    "LoadedRecord",
    "LoraConfigRecord",
    "LoraRecord",
    "LossPoint",
    "MergedRecord",
    "OddRows",
    "Outcome",
    "PeftConfigRecord",
    "PlanRecord",
    "PredictionRecord",
    "Probe",
    "PublishedRecord",
    "QuantizedGap",
    "Record",
    "ReplayRow",
    "ReportRecord",
    "ResolvedLora",
    "RetrainedRecord",
    "RowPlace",
    "RunRecord",
    "SampleRecord",
    "SavedRecord",
    "ScoredModel",
    "ServedRow",
    "ServingOutcome",
    "ServingReference",
    "ShownRow",
    "SourceRecord",
    "SplitRecord",
    "TargetMatches",
    "TrainedRecord",
    "TrainingPlan",
    "VariantRecord",
    "VariantResult",
    "VariantsRecord",
    "VersionRecord",
    "checkpoints_in",
    "source_in",
    "tokens_in",
    "variants_in",
]
