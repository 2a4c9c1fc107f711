"""The objective of odds: pairs are learned without a reference, beside the chosen answers.

Odds ratio preference optimization (https://arxiv.org/abs/2403.07691): the cross entropy of the
chosen answers, and beta times how little the odds of the chosen answer exceed the rejected one's,
by the mean log-probability of an answer's tokens.
"""

import math
from typing import TYPE_CHECKING, ClassVar

from tasks.engine.batching import MicroBatch
from tasks.engine.objectives.preferring import PreferringPairs, measured_pairs
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class ORPO(PreferringPairs):
    """The objective of a causal language model that learns odds; see `Objective`."""

    measures: ClassVar[tuple[str, ...]] = (
        *PreferringPairs.measures,
        "nll_loss",
        "log_odds_ratio",
        "log_odds_chosen",
    )

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed loss of the pairs, and what is measured of each; see `DPO`."""
        from torch.nn.functional import logsigmoid

        from tasks.engine.batching import answer_logps

        logps = answer_logps(model, micro_batch, in_chunks=plan.loss_in_chunks)
        means = logps / micro_batch["lengths"]
        log_odds = means - _log_of_other(means)
        margins = log_odds[0] - log_odds[1]
        ratios = logsigmoid(margins)
        # TRL 1.16 also learns the prompts; the paper and we learn the answers only.
        nll = -logps[0] / micro_batch["chosen_tokens"]
        measured = measured_pairs(
            self.preferences.beta * means, means, micro_batch, nll, ratios, margins
        )
        return (nll - self.preferences.beta * ratios).sum(), measured


def _log_of_other(logps: "Tensor") -> "Tensor":
    """Return log(1 - p) of log-probabilities, accurate where p is near 0 or 1."""
    import torch

    # As in https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf. The odds of a
    # log-probability that rounds to 0 would be infinite.
    below = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    is_likely = below > -math.log(2)
    return torch.where(is_likely, (-torch.expm1(below)).log(), torch.log1p(-below.exp()))
