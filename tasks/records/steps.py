"""What passes between the steps: which state was reached, and what it takes to reach it again.

Records are frozen and go to JSON and back. They hold no model and no tensor (contract 1); a
record whose files are gone or changed counts as absent (contract 3).
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue

from tasks.config import BaseModelSettings, Bias, DataSettings


class Record(BaseModel):
    """A frozen noun for a state that was reached."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def is_intact(self) -> bool:
        """Tell whether every file that the record names still has the recorded content."""
        return not self.spoiled_files()

    def spoiled_files(self) -> list[Path]:
        """Give the files that the record names and that are gone or changed."""
        values = (getattr(self, name) for name in type(self).model_fields)
        parts = (part for v in values for part in (v if isinstance(v, tuple) else (v,)))
        return [path for part in parts if isinstance(part, Record) for path in part.spoiled_files()]


class FileRecord(Record):
    """A file and its content's sha256."""

    path: Path
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Record the file as it is now."""
        status = path.stat()
        digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
        return cls(path=path, sha256=digest, size_bytes=status.st_size)

    def spoiled_files(self) -> list[Path]:
        """Give the file, if it no longer has the content that was recorded."""
        is_same = self.path.is_file() and FileRecord.of(self.path) == self
        return [] if is_same else [self.path]


@lru_cache(maxsize=1024)
def _sha256(path: Path, size_bytes: int, changed_ns: int, inode: int) -> str:  # noqa: ARG001
    """Hash a file once for as long as it looks unchanged: a base may have many gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunRecord(Record):
    """The MLflow run that belongs to a flow run, and the folder that the flow run writes to.

    MLflow finds the run by the flow run's id; the run's own id is not known while the server is
    down.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    flow_run_id: str
    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Give the folder of the training's checkpoints, which exists once it has one."""
        return checkpoints_in(self.folder)


def checkpoints_in(run_folder: Path) -> Path:
    """Give the place of the checkpoints in a run's folder."""
    return run_folder / "checkpoints"


def tokens_in(run_folder: Path) -> Path:
    """Return the place of the tokenised rows in a run's folder."""
    return run_folder / "tokens"


class SplitRecord(Record):
    """One split after tokenisation."""

    source: str
    sha256: str
    """Of all rows in order, as canonical JSON."""
    num_rows: int
    num_tokens: int
    num_trained_tokens: int
    """What the loss falls on: tokens, or the labels of rows and words that are classified."""
    longest_tokens: int
    num_shortened_answers: int = 0
    num_shortened_texts: int = 0
    """Texts of which the end is cut off, where the answer is no part of them."""
    num_untrained_answers: int = 0
    """Earlier answers of a talk that the chat template rewrites later on."""
    num_unwritten_messages: int = 0
    """Messages to the assistant that the chat template leaves out or rewrites."""
    num_stopped_answers: int = 0
    """Those with the text of an end token in them, at which generation stops."""
    num_completed_answers: int = 0
    """Those behind which an end token was put, as the chat template writes none."""
    num_endless_answers: int = 0
    """Those that end in nothing that stops generation."""
    num_reopened_answers: int = 0
    """Those that the chat template opens otherwise than it asks for them."""
    num_dropped_rows: int = 0


class DataRecord(Record):
    """Configuration and data as they were checked before step 1."""

    settings: DataSettings
    seed: int
    row_format: str
    template: str
    train: SplitRecord
    eval: SplitRecord | None
    num_eval_rows_in_train: int
    labels: tuple[str, ...] = ()
    """The classes, in the order of the model's outputs, where rows are classified."""
    untrained_labels: tuple[str, ...] = ()
    """Those of them that no training row has."""
    unread: dict[str, int] = {}
    """In how many rows something stands that is not read, by the column's name."""
    base_sha256: str
    """Of the base whose tokenizer the rows are for: its weights and its configuration."""
    tokens: tuple[FileRecord, ...]
    """The tokenised rows: those to train on and, if there are any, the held-out ones."""


class BaseSource(Record):
    """A base model that was found: which one it is, for good, and how it is loaded."""

    settings: BaseModelSettings
    """As the user set them."""
    labels: tuple[str, ...]
    """The classes, in the order of the model's outputs, where its task has any."""
    location: str
    """A local folder, or a Hub id together with `revision`."""
    revision: str | None
    """The resolved commit of a Hub id."""
    reference: str
    """How another machine finds this base: a Hub id where there is one, else the local path."""
    fingerprint: str
    """`sha256:…` of the weight files, or `commit:…` of a Hub id."""
    files: tuple[FileRecord, ...]
    """The weight files of a local base; the Hub's client looks after the others itself."""
    dtype: str
    """Of the weights, of packed ones that of the computation; what `auto` was resolved to."""


class BaseModelRecord(BaseSource):
    """Step 1: a base model, found and loaded."""

    architecture: str
    num_parameters: int
    num_bytes: int


class TargetMatches(Record):
    """How many modules the target names select."""

    per_target: dict[str, int]
    per_layer: dict[str, int]
    """By the layer's number; `outside` for modules that are in no numbered layer."""


class PeftConfigRecord(Record):
    """The whole configuration of a PEFT method, with every choice written out.

    Declared is what is read here. Whatever else PEFT has in it is kept as it is, so that the same
    configuration can be built again.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, JsonValue]

    peft_type: str
    """PEFT's name of the method."""
    task_type: str
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values, by PEFT's names."""
        return self.model_dump(mode="json")


class LoraConfigRecord(PeftConfigRecord):
    """The configuration of LoRA."""

    peft_type: Literal["LORA"]
    r: int
    lora_alpha: int | float
    lora_dropout: float
    bias: Bias
    use_rslora: bool
    use_dora: bool
    init_lora_weights: bool | str


class LoraRecord(Record):
    """Step 2: the resolved LoRA configuration."""

    base: BaseModelRecord
    adapter_name: str
    seed: int
    peft_config: LoraConfigRecord
    matches: TargetMatches
    num_trainable_parameters: int
    num_total_parameters: int
    remarks: tuple[str, ...]


class InjectedRecord(Record):
    """Step 3: the base with a fresh adapter in it, proven to change nothing."""

    lora: LoraRecord
    initial_weights: FileRecord
    base_checksum: str
    """xxh3-128 of all base weights after the adapter's initialisation."""
    num_trainable_parameters: int
    num_total_parameters: int
    layers: TargetMatches
    logit_difference: float
    """Largest absolute difference from the base's logits on a probe."""


class TrainingPlan(Record):
    """What step 4 chose by itself before its first step, for all its tries."""

    made_for: str
    """Identity of the training, by `training_identity`."""
    layout: int = 1
    """Of this record; 1 is the first version's, whose `made_for` also held paths and wording."""
    batching: str
    prefix_length: int
    """Tokens that all rows begin with, where `batching` shares them."""
    batch_tokens: int
    """Most tokens of one forward pass."""
    loss_in_chunks: bool
    """Whether the logits are never there all at once."""
    num_threads: int
    """Of torch on the CPU: with another number, sums are rounded differently."""
    remarks: tuple[str, ...] = ()


class LossPoint(Record):
    """A point of the loss curve."""

    step: int
    train_loss: float | None = None
    eval_loss: float | None = None


class TrainedRecord(Record):
    """Step 4: a trained adapter, as a checkpoint."""

    injected: InjectedRecord
    weights: FileRecord
    num_steps: int
    best_step: int | None
    train_loss: float
    eval_loss: float | None
    num_trained_tokens: int
    num_tokens: int
    seconds_training: float
    adapter_change: float
    """Euclidean norm of the difference to the initial weights."""
    batching: str
    loss_curve: tuple[LossPoint, ...]
    eval_metrics: dict[str, float] = {}
    """Of the held-out rows, by the weights that were kept: `accuracy` and `macro_f1`, where rows
    or words are classified, and `entity_f1`, where words are entities."""
    remarks: tuple[str, ...] = ()

    @property
    def eval_metrics_text(self) -> str:
        """Write the metrics, which are shares, for people to read."""
        given = self.eval_metrics.items()
        return ", ".join(f"{name.replace('_', '-')} {value:.1%}" for name, value in given)


class SavedRecord(Record):
    """Step 5: the adapter in its own folder, complete with its manifest."""

    base: BaseModelRecord
    adapter_name: str
    template: str
    """`chat` or `plain`: how prompts were rendered in training, and so must be."""
    folder: Path
    weights: FileRecord
    config: FileRecord
    manifest: FileRecord
    num_adapter_parameters: int
    adapter_bytes: int
    header_bytes: int
    round_trip_logit_difference: float
    hub_url: str | None
    remarks: tuple[str, ...] = ()


class SampleRecord(Record):
    """One held-out row, answered by the base and by the adapter."""

    prompt: str
    expected: str
    base_answer: str
    adapter_answer: str
    base_matches: bool
    adapter_matches: bool


class LoadedRecord(Record):
    """Step 6: the saved adapter on a fresh base, and what both answered."""

    saved: SavedRecord
    logit_effect: float
    """Largest absolute logit difference between base and adapter on the probe."""
    num_samples: int
    base_exact_match: float | None
    adapter_exact_match: float | None
    samples: tuple[SampleRecord, ...]


class PredictionRecord(Record):
    """A file of rows, answered."""

    output: FileRecord
    num_rows: int
    num_answered: int
    num_bad_rows: int
    num_rows_per_adapter: dict[str, int]
    first_errors: tuple[str, ...]
    seconds: float
    """Of this process, without loading the model."""
    rows_per_second: float
    """Of the rows that this process answered; 0 where an earlier one had answered all."""
    remarks: tuple[str, ...] = ()


class PackedGap(Record):
    """How far a merged model is from its adapter on the packed base of the training."""

    quantization: str
    logit_difference: float
    same_next_token: float
    """Share of the probe's places where the likeliest next token is the same."""
    score: float | None


class MergedRecord(Record):
    """An adapter merged into its base, proven by reading the result back."""

    folder: Path
    base_model: str
    base_fingerprint: str
    adapter_sha256: str
    dtype: str
    num_parameters: int
    largest_logit: float
    logit_difference: float
    """Largest absolute difference from base with adapter, all in float32."""
    tolerance: float
    is_untied: bool
    """Whether the output layer got weights of its own, where the base shares its embeddings'."""
    score: float | None
    """Share of the given rows answered right, by the merged model as by base with adapter."""
    packed: PackedGap | None
    remarks: tuple[str, ...] = ()


class GgufRecord(Record):
    """An adapter as one GGUF file."""

    file: FileRecord
    base_model: str
    base_fingerprint: str
    adapter_sha256: str
    architecture: str
    """llama.cpp's name of the base's kind."""
    num_adapter_parameters: int
    remarks: tuple[str, ...] = ()


class CombinedRecord(Record):
    """One adapter made of several, proven by loading it."""

    folder: Path
    base_model: str
    method: str
    weights: dict[str, float]
    """By the sha256 of each adapter's own weights."""
    r: int
    num_adapter_parameters: int
    round_trip_logit_difference: float
    logit_effect: float
    """Largest absolute logit difference from the base."""
    remarks: tuple[str, ...] = ()


class ReportRecord(Record):
    """What the flow hands back: where everything is, and the numbers that matter."""

    run: RunRecord
    data: DataRecord
    trained: TrainedRecord
    saved: SavedRecord
    loaded: LoadedRecord
    model_uri: str | None
    """Of the adapter in MLflow; None while it waits to be shipped."""
