"""The training: what was chosen before its first step, and what came of it."""

from pydantic import AliasChoices, Field

from tasks.config import LearningObjective, PreferenceSettings
from tasks.records.lora import InjectedRecord
from tasks.records.record import FileRecord, Record

_OF_PREFERENCES = ("rewards/", "logps/", "lengths/", "kl", "nll_loss", "log_odds_")
_SHARE, _MARGIN = "rewards/accuracies", "rewards/margins"


class TrainingPlan(Record):
    """What step 4 chose by itself before its first step, for all attempts."""

    made_for: str
    """Identity of the training: the sha256 of all that it is a function of."""
    layout: int = 1
    """Of this record; 1 is the first version's, whose `made_for` also held paths and wording."""
    batching: str
    prefix_length: int
    """Tokens that all rows begin with, where `batching` shares them."""
    batch_tokens: int
    """Most tokens of one forward pass."""
    loss_in_chunks: bool
    """Whether the loss is computed without ever holding all logits in memory."""
    num_threads: int
    """Of torch on the CPU: with another number, sums are rounded differently."""
    num_processes: int = 1
    """That train together; the rows of a step are added up in another order with another number."""
    # A training that an older version began keeps its plan, with the name that this had then.
    warnings: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("warnings", "remarks")
    )


class LossPoint(Record):
    """A point of the loss curve."""

    step: int
    train_loss: float | None = None
    eval_loss: float | None = None


class LearnedPreferences(Record):
    """How a training learned from preferences."""

    objective: LearningObjective
    settings: PreferenceSettings
    reference_sha256: str | None = None
    """Of the file with the reference's log-probabilities; None where there is no reference."""
    num_reference_pairs: int = 0
    """Prompts with their answers: pairs, where pairs are learned."""
    seconds_reference: float = 0.0
    """That computing them took."""

    @property
    def kind(self) -> str:
        """What is preferred, as text for people."""
        if self.objective.learns_pairs:
            return "of two answers to a prompt, the chosen one"
        return "desirable answers rather than undesirable ones"

    @property
    def text(self) -> str:
        """The objective, the losses and beta, as text for people."""
        return f"{self.objective}, {self.settings.text}"


class TrainedRecord(Record):
    """Step 4: a trained adapter, as a checkpoint."""

    injected: InjectedRecord
    weights: FileRecord
    num_steps: int
    best_step: int | None
    train_loss: float
    eval_loss: float | None
    num_trained_tokens: int
    """Tokens that the loss was computed on, over all epochs."""
    num_tokens: int
    seconds_training: float
    adapter_change: float
    """Euclidean norm of the difference from the initial weights."""
    batching: str
    loss_curve: tuple[LossPoint, ...]
    eval_metrics: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it
    """Of the held-out rows, by the weights that were kept: `accuracy` and `macro_f1` where rows or
    words are classified, `entity_f1` where words are entities, and `rewards/accuracies` and the
    like of pairs."""
    eval_losses: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it
    """The held-out loss of each source by its name, by the weights that were kept, where there are
    several."""
    preferences: LearnedPreferences | None = None
    """None where the objective is `sft`."""
    warnings: tuple[str, ...] = ()

    @property
    def eval_metrics_text(self) -> str:
        """The metrics as text for people: shares as percentages, others as numbers.

        Of those of pairs, only how often the chosen answer is preferred, and by how much.
        """
        given = ((name, one) for name, one in self.eval_metrics.items() if _is_told(name))
        return ", ".join(f"{name.replace('_', '-')} {_as_text(name, one)}" for name, one in given)


def _is_told(name: str) -> bool:
    return not name.startswith(_OF_PREFERENCES) or name.startswith((_SHARE, _MARGIN))


def _as_text(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith(_MARGIN) else f"{value:.1%}"
