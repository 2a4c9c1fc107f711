"""The objective of preferences: of two answers to a prompt, the chosen one becomes more likely.

Direct preference optimization (https://arxiv.org/abs/2305.18290): how much more likely each answer
is than under the reference, the model before training, is its implicit reward, and the loss falls
as the chosen answer's rises above the rejected one's.
"""

from collections.abc import Iterator, Sequence
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

MEASURES = (
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


@dataclass(frozen=True)
class DPO(CausalLM):
    """The objective of a causal language model that learns from pairs; see `Objective`."""

    preferences: PreferenceSettings = field(default_factory=PreferenceSettings)
    measures: ClassVar[tuple[str, ...]] = MEASURES

    def tokenize(
        self, split: Split, renderer: Renderer, settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield the tokens of each pair: the row of the chosen answer, then the rejected one's."""
        positions = limits_of(base).fixed_positions
        return tokenize_pairs(split, renderer, settings, positions=positions)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Return a collator of pairs, with the layout of rows that the plan names."""
        from tasks.engine.batching import make_batches

        return PreferenceBatches(make_batches(plan, pad_token_id), plan.batch_tokens)

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed loss of the pairs, and what is measured of each.

        The loss is a float32 scalar, the measures are float32 [pairs, 1, measures].
        """
        import torch

        from tasks.engine.batching import answer_logps
        from tasks.engine.objectives.preference_losses import PairScores, pair_losses

        logps = answer_logps(model, micro_batch, in_chunks=plan.loss_in_chunks)
        ratios, lengths = logps - micro_batch["reference"], micro_batch["lengths"]
        scores = PairScores(
            chosen=ratios[0],
            rejected=ratios[1],
            chosen_lengths=lengths[0],
            rejected_lengths=lengths[1],
            chosen_logps=logps[0],
            mean_chosen_length=micro_batch["chosen_tokens"],
        )
        rewards = self.preferences.beta * ratios.detach()
        measured = (
            *rewards,
            (rewards[0] > rewards[1]).float(),
            rewards[0] - rewards[1],
            *logps.detach(),
            *lengths.float(),
        )
        return pair_losses(scores, self.preferences).sum(), torch.stack(measured, dim=1)[:, None]

    def complete(self, batches: Sequence[Batch]) -> None:
        """Tell the micro-batches of an optimizer step the mean length of its chosen answers."""
        import torch

        micro_batches = [one for batch in batches for one in batch["micro_batches"]]
        if micro_batches:
            mean = torch.cat([one["lengths"][0] for one in micro_batches]).float().mean()
            for one in micro_batches:
                one["chosen_tokens"] = mean

    def metrics(
        self,
        expected: Sequence[Sequence[int]],  # noqa: ARG002
        predicted: Sequence[Sequence[object]],
        names: Sequence[str],  # noqa: ARG002
    ) -> dict[str, float]:
        """Return the mean of each measure over all held-out pairs, by its name."""
        import numpy as np

        means = np.array([measures for (measures,) in predicted], dtype=np.float64).mean(axis=0)
        return dict(zip(self.measures, means.tolist(), strict=True))
