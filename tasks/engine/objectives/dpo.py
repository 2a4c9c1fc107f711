"""The objective of preferences: of two answers to a prompt, the chosen one becomes more likely.

Direct preference optimization (https://arxiv.org/abs/2305.18290): how much more likely each answer
is than under the reference, the model before training, is its implicit reward, and the loss falls
as the chosen answer's rises above the rejected one's.
"""

from typing import TYPE_CHECKING

from tasks.engine.batching import MicroBatch
from tasks.engine.objectives.preferring import PreferringPairs, measured_pairs
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class DPO(PreferringPairs):
    """The objective of a causal language model that learns from pairs; see `Objective`."""

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed loss of the pairs, and what is measured of each.

        The loss is a float32 scalar, the measures are float32 [pairs, 1, measures].
        """
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
        rewards = self.preferences.beta * ratios
        losses = pair_losses(scores, self.preferences)
        return losses.sum(), measured_pairs(rewards, logps, micro_batch)
