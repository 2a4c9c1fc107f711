"""The reference of a training on pairs: the model as step 3 left it, before its first step.

A fresh adapter changes no logit, so that this is the base; where the adapter's start changed base
weights (PiSSA, OLoRA) or came from elsewhere, it is both together. Its log-probabilities of each
answer never change. They are computed once, and kept beside the checkpoints for all attempts:
`reference.safetensors`, and `reference.json`, written last, which names what they were computed of.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from tasks.config import Batching
from tasks.engine.adapters import load_weights, save_weights, write_adapter
from tasks.engine.batching import answer_logps
from tasks.engine.data.tokens import TokenizedRow
from tasks.engine.eval_mode import eval_mode
from tasks.engine.kernels import attending_by_row, fused_adapter_layers, lean_layers
from tasks.engine.objectives import Objective
from tasks.engine.training.pairs import Pairs
from tasks.records import FileRecord, InjectedRecord, Record, TrainingPlan
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_LAYOUT = 1
"""Of what is computed; another number makes older files unusable."""
_FILE, _MANIFEST = "reference.safetensors", "reference.json"
OnReference = Callable[[int, int], None]
"""Called with the number of pairs that the reference was computed for so far, and of all."""


class KeptReference(Record):
    """The log-probabilities of a reference, in a file."""

    made_for: str
    """The sha256 of all that they are a function of."""
    file: FileRecord
    num_pairs: int
    seconds: float


@dataclass(frozen=True)
class Answers:
    """The pairs of a split whose reference is needed."""

    rows: Sequence[TokenizedRow]
    places: Sequence[int]
    """Of the pairs, ascending."""


@dataclass(frozen=True)
class Reference:
    """The log-probabilities of the reference, and where they are kept."""

    logps: Mapping[str, torch.Tensor]
    """By split: float32 [pairs, 2], not a number where it is not needed."""
    kept: KeptReference


def reference_of(  # noqa: PLR0913 - what it is a function of, and where it goes
    model: "PreTrainedModel",
    injected: InjectedRecord,
    task: Objective,
    plan: TrainingPlan,
    splits: Mapping[str, Answers],
    *,
    identity: Mapping[str, object],
    pad_token_id: int,
    batch_size: int,
    folder: Path,
    on_reference: OnReference | None = None,
) -> Reference:
    """Read the reference's log-probabilities from the folder, else compute and keep them.

    Args:
        model: the model; computing them resets its adapter to the initial weights.
        injected: the state of the model before training.
        task: the objective, which makes batches of pairs.
        plan: how rows are batched.
        splits: the pairs, by the names of their splits.
        identity: all that they are a function of, beside the pairs that are needed.
        pad_token_id: of the tokenizer.
        batch_size: pairs that are collated at once.
        folder: of the training's checkpoints.
        on_reference: called after each batch.

    Raises:
        UnwritableError: the disk is full, or the folder is not writable.
    """
    made_for = _identity(identity, splits)
    if kept := _kept(folder, made_for):
        return Reference(load_weights(folder / _FILE), kept)
    started = time.perf_counter()
    num_pairs = sum(len(one.places) for one in splits.values())
    log.info("computing the reference's log-probabilities of %d pairs, once", num_pairs)
    initial = load_weights(injected.initial_weights.path)
    write_adapter(model, injected.lora.adapter_name, initial)
    batches = task.make_batches(plan, pad_token_id)
    found: dict[str, torch.Tensor] = {}
    num_before = 0
    with _computing(model, plan):
        for name, one in splits.items():
            logps = torch.full((len(one.rows) // 2, 2), torch.nan)
            pairs = Pairs(one.rows, torch.zeros_like(logps), places=one.places)
            for start in range(0, len(pairs), batch_size):
                some = [pairs[at] for at in range(start, min(start + batch_size, len(pairs)))]
                for micro_batch in batches(some)["micro_batches"]:
                    here = {key: value.to(model.device) for key, value in micro_batch.items()}
                    values = answer_logps(model, here, in_chunks=plan.loss_in_chunks)
                    logps[micro_batch["numbers"]] = values.T.cpu()
                if on_reference:
                    on_reference(num_before + start + len(some), num_pairs)
            found[name] = logps
            num_before += len(pairs)
    seconds = time.perf_counter() - started
    return Reference(found, _keep(folder, made_for, found, num_pairs, seconds))


@contextmanager
def _computing(model: "PreTrainedModel", plan: TrainingPlan) -> Iterator[None]:
    """Let the model compute as in training, but without dropout and gradients, for a while."""
    is_packed = plan.batching != Batching.PADDED
    with (
        lean_layers(model),
        fused_adapter_layers(model),
        attending_by_row(model) if is_packed else nullcontext(),
        eval_mode(model),
        torch.no_grad(),
    ):
        yield


def _identity(identity: Mapping[str, object], splits: Mapping[str, Answers]) -> str:
    needed = {name: list(map(int, one.places)) for name, one in splits.items()}
    inputs = {**identity, "layout": _LAYOUT, "pairs": needed}
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _kept(folder: Path, made_for: str) -> KeptReference | None:
    """Return what the folder has, if it is complete and of the same reference and pairs."""
    try:
        kept = KeptReference.model_validate_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
    # By file name: the run's folder may have been moved since.
    file = kept.file.model_copy(update={"path": folder / _FILE})
    return kept if kept.made_for == made_for and file.is_intact() else None


def _keep(
    folder: Path, made_for: str, logps: Mapping[str, torch.Tensor], num_pairs: int, seconds: float
) -> KeptReference:
    file = FileRecord.of(save_weights(dict(logps), folder / _FILE))
    kept = KeptReference(made_for=made_for, file=file, num_pairs=num_pairs, seconds=seconds)
    write_atomically(folder / _MANIFEST, kept.model_dump_json(indent=2))
    return kept
