"""Answers of tiny models, compared as TRL does and as we do: losses, measures and gradients."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from exact_training import Gradients, gradients

from tasks.config import LearningObjective, PreferenceSettings, Task
from tasks.engine.adapters.activation import adapters_disabled
from tasks.engine.batching.batches import Batch, PackedBatches, PaddedBatches
from tasks.engine.batching.loss import can_chunk, labeled_logits
from tasks.engine.batching.preference_batches import PreferenceBatches, answer_logps
from tasks.engine.data.tokens.tokenization import TokenizedRow
from tasks.engine.kernels.row_attention import attending_by_row
from tasks.engine.objectives.objective import Objective
from tasks.engine.objectives.registry import objective_of
from tasks.engine.training.compared import Compared
from tasks.engine.training.group import ALONE
from tasks.engine.training.items import Sharing
from tasks.engine.training.judged import Judged, JudgedRows, Mismatched, mismatches
from tasks.engine.training.pairs import Pairs
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNLIMITED = 10**6
SEED = 3
"""Of the mismatches: with these, the divergence of each tiny model is above 0."""
LAYOUTS: dict[str, Callable[[int], PaddedBatches | PackedBatches]] = {
    "padded": lambda tokens: PaddedBatches(0, tokens),
    "packed": lambda tokens: PackedBatches(0, tokens, by_conversation=False),
    "with prompts computed once": lambda tokens: PackedBatches(0, tokens),
}
Found = tuple[float, Gradients, dict[str, float]]
"""The mean loss, the gradients, and what is measured."""


def ours(  # noqa: PLR0913 - what is learned, and how it is computed
    model: "PreTrainedModel",
    rows: list[TokenizedRow],
    settings: dict[str, Any],
    layout: str = "padded",
    max_tokens: int = UNLIMITED,
    *,
    learned: str = "dpo",
    chunks: bool = False,
) -> Found:
    """Learn from pairs as we do."""
    objective = LearningObjective(learned)
    batches = PreferenceBatches(LAYOUTS[layout](max_tokens), max_tokens)
    with ExitStack() as stack:
        if layout != "padded":
            stack.enter_context(attending_by_row(model))
        pairs = Pairs(rows, Sharing(batches, "", ALONE))
        if objective.has_reference:
            pairs = pairs.compared_with(reference_of(model, pairs))
        [batch] = pairs.batches([list(range(len(pairs)))])
        return _learned(model, batch, settings_of(objective, settings), chunks=chunks)


def ours_judged(  # noqa: PLR0913 - what is learned, and how it is computed
    model: "PreTrainedModel",
    judged: JudgedRows,
    settings: dict[str, Any],
    layout: str = "padded",
    max_tokens: int = UNLIMITED,
    num_batches: int = 1,
    *,
    chunks: bool = False,
) -> Found:
    """Learn from judged answers as we do, in one step of several batches."""
    task = settings_of(LearningObjective.KTO, settings)
    sharing = Sharing(PreferenceBatches(LAYOUTS[layout](max_tokens), max_tokens), "", ALONE)
    numbers = list(range(len(judged.rows)))
    with ExitStack() as stack:
        if layout != "padded":
            stack.enter_context(attending_by_row(model))
        mismatched = None
        if settings.get("loss_type") != "apo_zero_unpaired":
            drawn = Mismatched(judged, sharing, list(mismatches(numbers, SEED).items()))
            mismatched = drawn.compared_with(reference_of(model, drawn))
        plain = Judged(judged, sharing, SEED)
        items = Judged(judged, sharing, SEED, mismatched, reference_of(model, plain))
        parts = [numbers[start::num_batches] for start in range(num_batches)]
        return _learned(model, items.batches(parts), task, chunks=chunks)


def settings_of(objective: LearningObjective, settings: dict[str, Any]) -> Objective:
    """Return an objective with its settings."""
    return objective_of(Task.CAUSAL_LM, objective, PreferenceSettings.model_validate(settings))


def _learned(
    model: "PreTrainedModel", given: Batch | Sequence[Batch], task: Objective, *, chunks: bool
) -> Found:
    step = [given] if isinstance(given, dict) else given
    plan = plan_of(chunks=chunks)
    task.complete(step, lambda number: number, model, plan)
    micro_batches = [one for batch in step for one in batch["micro_batches"]]
    num_items = sum(len(one["numbers"]) for one in micro_batches)
    total, measured = 0.0, []
    for micro_batch in micro_batches:
        if chunks:
            assert can_chunk(model, micro_batch, labeled_logits(model, micro_batch))
        summed, values = task.loss(model, micro_batch, plan)
        assert values is not None
        loss = summed / num_items
        loss.backward()
        total += loss.item()
        measured.append(values)
    return total, gradients(model), task.named(torch.cat(measured).mean(dim=(0, 1)).tolist())


def plan_of(*, chunks: bool = False) -> TrainingPlan:
    """Return a plan that says how the loss is computed."""
    return TrainingPlan(
        made_for="",
        batching="",
        prefix_length=0,
        batch_tokens=UNLIMITED,
        loss_in_chunks=chunks,
        num_threads=1,
    )


def reference_of(model: "PreTrainedModel", items: Compared) -> torch.Tensor:
    """Return the base's log-probabilities of the answers."""
    found = torch.zeros(len(items), items.num_answers)
    [batch] = items.batches([list(range(len(items)))])
    with adapters_disabled(model), torch.no_grad():
        for micro_batch in batch["micro_batches"]:
            logps = answer_logps(model, micro_batch, in_chunks=False)
            found[micro_batch["numbers"]] = logps.T
    return found


def assert_same_measures(
    measured: dict[str, float], logged: dict[str, float], tolerance: float = 1e-4
) -> None:
    """Compare what is measured with what TRL logs, which has no lengths."""
    for metric, value in measured.items():
        if not metric.startswith("lengths/"):
            difference = abs(value - logged[metric])
            assert difference <= tolerance * max(abs(value), 0.1), metric


def trl_arguments(folder: Path, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - TRL's own
    """Return the arguments of TRL's trainers on a CPU, with nothing that we do otherwise."""
    return {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        **settings,
    }


def features_of(rows: Sequence[TokenizedRow]) -> list[dict[str, list[int]]]:
    """Return the rows of pairs as the collator of TRL's experimental trainers takes them."""
    return [
        {
            f"{name}_{field}": values
            for name, row in (("chosen", chosen), ("rejected", rejected))
            for field, values in (
                ("input_ids", row.input_ids),
                ("attention_mask", [1] * len(row.input_ids)),
                ("labels", row.labels),
            )
        }
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
    ]
