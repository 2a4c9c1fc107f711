"""The losses of pairs, by TRL's names and formulas (TRL 1.16).

Each is a function of the log-ratios of both answers: log-probability under the model minus that
under the reference, summed over the answer's tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, relu

from tasks.config import LossType, PreferenceSettings


@dataclass(frozen=True)
class PairScores:
    """What the losses of pairs are computed from; each float32 [pairs]."""

    chosen: torch.Tensor
    """Log-ratios of the chosen answers."""
    rejected: torch.Tensor
    """Log-ratios of the rejected answers."""
    chosen_lengths: torch.Tensor
    """Tokens."""
    rejected_lengths: torch.Tensor
    """Tokens."""
    chosen_logps: torch.Tensor
    """Log-probabilities of the chosen answers."""
    mean_chosen_length: torch.Tensor
    """Of all pairs that the loss is a mean over, a scalar."""

    @property
    def margins(self) -> torch.Tensor:
        """How much more the chosen answers' log-ratios are than the rejected ones'."""
        return self.chosen - self.rejected


def pair_losses(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    """Return the weighted sum of the configured losses of each pair, float32 [pairs]."""
    losses = [weight * _LOSSES[kind](scores, settings) for kind, weight in settings.weights]
    return torch.stack(losses).sum(dim=0)


def _sigmoid(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    return -logsigmoid(settings.beta * scores.margins)


def _hinge(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    return relu(1 - settings.beta * scores.margins)


def _ipo(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    # A mean over tokens, not a sum: TRL's authors have it from those of the paper.
    chosen = scores.chosen / scores.chosen_lengths
    rejected = scores.rejected / scores.rejected_lengths
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def _robust(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    margins, flipped = settings.beta * scores.margins, settings.label_smoothing
    kept = flipped * logsigmoid(-margins) - (1 - flipped) * logsigmoid(margins)
    return kept / (1 - 2 * flipped)


def _apo_zero(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    """Equation 7 of the paper."""
    chosen, rejected = settings.beta * scores.chosen, settings.beta * scores.rejected
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:
    """Equation 8 of the paper."""
    margins = settings.beta * scores.margins
    return torch.sigmoid(settings.beta * scores.chosen) + 1 - torch.sigmoid(margins)


def _sft(scores: PairScores, settings: PreferenceSettings) -> torch.Tensor:  # noqa: ARG001
    # The mean over all chosen tokens, written as a mean over pairs.
    return -scores.chosen_logps / scores.mean_chosen_length


_LOSSES: dict[LossType, Callable[[PairScores, PreferenceSettings], torch.Tensor]] = {
    LossType.SIGMOID: _sigmoid,
    LossType.HINGE: _hinge,
    LossType.IPO: _ipo,
    LossType.ROBUST: _robust,
    LossType.APO_ZERO: _apo_zero,
    LossType.APO_DOWN: _apo_down,
    LossType.SFT: _sft,
}
