"""The objective of simple preferences: pairs are learned without a reference.

Simple preference optimization (https://arxiv.org/abs/2405.14734): the mean log-probability of an
answer's tokens is its reward, and the chosen answer's shall exceed the rejected one's by a margin.
With `cpo_alpha`, the cross entropy of the chosen answers is added, as in contrastive preference
optimization (https://arxiv.org/abs/2401.08417).
"""

from typing import TYPE_CHECKING, ClassVar

from tasks.config import LearningObjective
from tasks.engine.batching import MicroBatch
from tasks.engine.objectives.preferring import PreferringPairs, measured_pairs
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class SimPO(PreferringPairs):
    """The objective of a causal language model that learns simple preferences; see `Objective`."""

    measures: ClassVar[tuple[str, ...]] = (*PreferringPairs.measures, "nll_loss")

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed loss of the pairs, and what is measured of each; see `DPO`."""
        from torch.nn.functional import logsigmoid

        from tasks.engine.batching import answer_logps

        settings = self.preferences.of(LearningObjective.SIMPO)
        logps = answer_logps(model, micro_batch, in_chunks=plan.loss_in_chunks)
        means = logps / micro_batch["lengths"]
        rewards = settings.beta * means
        margins = rewards[0] - rewards[1] - (settings.simpo_gamma or 0.0)
        flipped = settings.label_smoothing
        losses = -(1 - flipped) * logsigmoid(margins) - flipped * logsigmoid(-margins)
        nll = -logps[0] / micro_batch["chosen_tokens"]
        measured = measured_pairs(rewards, means, micro_batch, nll)
        return (losses + (settings.cpo_alpha or 0.0) * nll).sum(), measured
