"""What a training is a function of, where it runs, and what it asks and tells while it does."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tasks.config import TrainingSettings
from tasks.engine.data.tokens import PreparedData
from tasks.engine.objectives import Objective, objective_of
from tasks.engine.training.checkpoints import Checkpoints
from tasks.engine.training.group import Group
from tasks.records import InjectedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnReference = Callable[[int, int], None]
"""Called with the number of pairs that the reference was computed for so far, and of all."""


class Inputs(NamedTuple):
    """The inputs of `train`, as its parts take them."""

    model: "PreTrainedModel"
    injected: InjectedRecord
    data: PreparedData
    settings: TrainingSettings
    checkpoints: Checkpoints
    group: Group
    should_stop: Callable[[], bool]
    on_reference: OnReference | None

    @property
    def task(self) -> Objective:
        """The objective."""
        settings = self.settings
        task = self.injected.lora.base.settings.task
        return objective_of(task, settings.objective, settings.preference_settings)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's, or any token where it has none, as padding is never attended to."""
        return self.data.renderer.tokenizer.pad_token_id or 0
