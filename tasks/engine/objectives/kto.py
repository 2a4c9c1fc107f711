"""The objective of judged answers: desirable ones become more likely, others less.

Kahneman-Tversky optimization (https://arxiv.org/abs/2402.01306): how much more likely an answer is
than under the reference is its implicit reward. It is valued against a point that all rows of an
optimizer step have in common: how far the model has moved from the reference altogether, a KL
divergence, estimated on mismatched rows (`tasks/engine/training/judged.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from tasks.config import DataSettings, LearningObjective, LossType
from tasks.engine.batching import Batch, MicroBatch
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens import Tokenized
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.preferring import Preferring
from tasks.records import BaseSource, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_OF_ANSWERS = ("rewards", "logps", "lengths")


class KTO(Preferring):
    """The objective of a causal language model that learns from judged answers; see `Objective`."""

    # Of a row whose answer is not desirable, those of desirable ones are 0, and vice versa.
    measures: ClassVar[tuple[str, ...]] = (
        "desirable",
        "kl",
        *(f"{name}/{kind}" for kind in ("chosen", "rejected") for name in _OF_ANSWERS),
    )

    def tokenize(
        self, split: Split, renderer: Renderer, settings: DataSettings, base: BaseSource
    ) -> Iterator[Tokenized]:
        """Yield each row's tokens, as for learning answers, and count the desirable ones."""
        for one in super().tokenize(split, renderer, settings, base):
            if one.row is None or not one.example.is_desirable:
                yield one
                continue
            found = {"num_desirable_rows": 1, "num_chosen_tokens": one.row.num_trained_tokens}
            yield replace(one, counts={**one.counts, **found})

    def complete(
        self,
        batches: Sequence[Batch],
        total: Callable[[float], float],
        model: "PreTrainedModel",
        plan: TrainingPlan,
    ) -> None:
        """Tell the micro-batches of an optimizer step how far the model is from the reference."""
        import torch

        from tasks.engine.batching import answer_logps

        summed, num_rows = 0.0, 0
        with eval_mode(model), torch.no_grad():
            for one in (one for batch in batches for one in batch.get("mismatched", [])):
                here = {name: tensor.to(model.device) for name, tensor in one.items()}
                logps = answer_logps(model, here, in_chunks=plan.loss_in_chunks)
                ratios = (logps - here["reference"]).cpu().double()
                summed, num_rows = summed + ratios.sum().item(), num_rows + ratios.numel()
            for one in (one for batch in batches for one in batch.get("mismatched_fillers", [])):
                here = {name: tensor.to(model.device) for name, tensor in one.items()}
                answer_logps(model, here, in_chunks=plan.loss_in_chunks)
        mean = total(summed) / max(1.0, total(num_rows))
        for batch in batches:
            for one in batch["micro_batches"]:
                one["kl"] = torch.tensor(max(0.0, mean))

    def loss(
        self, model: "PreTrainedModel", micro_batch: MicroBatch, plan: TrainingPlan
    ) -> tuple["Tensor", "Tensor"]:
        """Return the summed loss of the rows, and what is measured of each.

        The loss is a float32 scalar, the measures are float32 [rows, 1, measures]. Held-out rows
        have no divergence yet: `kl` is that of each row, and `metrics` returns their loss.
        """
        import torch

        from tasks.engine.batching import answer_logps

        logps = answer_logps(model, micro_batch, in_chunks=plan.loss_in_chunks)
        ratios = logps - micro_batch["reference"]
        rewards, desirable = self.preferences.beta * ratios[0], micro_batch["labels"][:, 0]
        if "kl" in micro_batch:
            kl = micro_batch["kl"].expand_as(rewards)
        else:
            kl = ratios[1] if len(ratios) > 1 else torch.zeros_like(rewards)
        answers = torch.stack([rewards, logps[0], micro_batch["lengths"][0]])
        measured = (desirable, kl, *(answers * desirable), *(answers * (1 - desirable)))
        losses = self._losses(rewards, desirable, kl)
        return losses.sum(), torch.stack(measured, dim=1)[:, None].detach()

    def _losses(self, rewards: "Tensor", desirable: "Tensor", kl: "Tensor") -> "Tensor":
        """Return the loss of each row, by TRL's formulas."""
        import torch

        settings = self.preferences.of(LearningObjective.KTO)
        is_kto = settings.loss_type == [LossType.KTO]
        values = rewards - settings.beta * kl if is_kto else rewards
        weights = torch.where(
            desirable > 0, settings.desirable_weight or 1.0, settings.undesirable_weight or 1.0
        )
        return weights * torch.sigmoid(torch.where(desirable > 0, -values, values))

    def named(self, means: Sequence[float]) -> dict[str, float]:
        """Return the means of desirable answers and of others, where there are any."""
        given = dict(zip(self.measures, means, strict=True))
        shares = {"chosen": given["desirable"], "rejected": 1 - given["desirable"]}
        found = {
            f"{name}/{kind}": given[f"{name}/{kind}"] / share
            for name in _OF_ANSWERS
            for kind, share in shares.items()
            if share
        }
        if all(shares.values()):
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return {**found, "kl": max(0.0, given["kl"])}

    def metrics(
        self,
        expected: Sequence[Sequence[int]],
        predicted: Sequence[Sequence[object]],
        names: Sequence[str],
    ) -> dict[str, float]:
        """Return the loss of all held-out rows, with their common divergence, and the measures."""
        import torch

        found = super().metrics(expected, predicted, names)
        measured = torch.tensor([one for (one,) in predicted], dtype=torch.float64)
        at = {name: measured[:, place] for place, name in enumerate(self.measures)}
        rewards = at["rewards/chosen"] + at["rewards/rejected"]
        losses = self._losses(rewards, at["desirable"], torch.tensor(found["kl"]))
        return {**found, "loss": losses.mean().item()}
