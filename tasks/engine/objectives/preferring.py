"""What objectives that learn from preferences have in common, and those of pairs in particular."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, PreferenceSettings
from tasks.engine.base import limits_of
from tasks.engine.batching import Batch, Batches, MicroBatch, PreferenceBatches
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens import Tokenized, tokenize_pairs
from tasks.engine.objectives.causal_lm import CausalLM
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Preferring(CausalLM):
    """An objective of a causal language model that compares answers; see `Objective`."""

    preferences: PreferenceSettings = field(default_factory=PreferenceSettings)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Return a collator of answers, with the layout of rows that the plan names."""
        from tasks.engine.batching import make_batches

        return PreferenceBatches(make_batches(plan, pad_token_id), plan.batch_tokens)

    def metrics(
        self,
        expected: Sequence[Sequence[int]],  # noqa: ARG002
        predicted: Sequence[Sequence[object]],
        names: Sequence[str],  # noqa: ARG002
    ) -> dict[str, float]:
        """Return what is measured of all held-out items, by its name."""
        import numpy as np

        measured = np.array([measures for (measures,) in predicted], dtype=np.float64)
        return self.named(measured.mean(axis=0).tolist())


class PreferringPairs(Preferring):
    """An objective that compares a chosen and a rejected answer."""

    measures: ClassVar[tuple[str, ...]] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "lengths/chosen",
        "lengths/rejected",
    )
    """What is measured of each pair, by TRL's names; it has none for the lengths, in tokens."""

    def tokenize(
        self, split: Split, renderer: Renderer, settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield the tokens of each pair: the row of the chosen answer, then the rejected one's."""
        positions = limits_of(base).fixed_positions
        return tokenize_pairs(split, renderer, settings, positions=positions)

    def complete(
        self,
        batches: Sequence[Batch],
        total: Callable[[float], float],
        model: "PreTrainedModel",  # noqa: ARG002
        plan: TrainingPlan,  # noqa: ARG002
    ) -> None:
        """Tell the micro-batches of an optimizer step the mean length of its chosen answers."""
        import torch

        micro_batches = [one for batch in batches for one in batch["micro_batches"]]
        num_tokens = total(sum(int(one["lengths"][0].sum()) for one in micro_batches))
        num_pairs = total(sum(len(one["numbers"]) for one in micro_batches))
        for one in micro_batches:
            one["chosen_tokens"] = torch.tensor(num_tokens / num_pairs)


def measured_pairs(
    rewards: "Tensor", logps: "Tensor", micro_batch: MicroBatch, *others: "Tensor"
) -> "Tensor":
    """Return the measures of pairs, float32 [pairs, 1, measures].

    Args:
        rewards: of both answers, float32 [2, pairs].
        logps: the log-probabilities that they are logged with, float32 [2, pairs].
        micro_batch: has the lengths.
        others: more measures, each float32 [pairs].
    """
    import torch

    measured = (
        *rewards,
        (rewards[0] > rewards[1]).float(),
        rewards[0] - rewards[1],
        *logps,
        *micro_batch["lengths"].float(),
        *others,
    )
    return torch.stack(measured, dim=1)[:, None].detach()
