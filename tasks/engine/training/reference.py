"""The reference of a training on preferences: the model as step 3 left it, before its first step.

A fresh adapter changes no logit, so that this is the base; where the adapter's start changed base
weights (PiSSA) or came from elsewhere, it is both together. Its log-probabilities of each
answer never change. They are computed once, and kept beside the checkpoints for all attempts:
`reference.safetensors`, and `reference.json`, written last, which names what they were computed of.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from tasks.engine.adapters import load_weights, save_weights, write_adapter
from tasks.engine.batching import MicroBatch, answer_logps
from tasks.engine.eval_mode import eval_mode
from tasks.engine.kernels import training_kernels
from tasks.engine.training.compared import Compared
from tasks.engine.training.group import Group
from tasks.engine.training.inputs import Inputs
from tasks.engine.training.plan import what_is_computed
from tasks.errors import StoppedError
from tasks.records import FileRecord, Record, TrainingPlan
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_LAYOUT = 1
"""Of what is computed; another number makes older files unusable."""
_FILE, _MANIFEST = "reference.safetensors", "reference.json"


class KeptReference(Record):
    """The log-probabilities of a reference, in a file."""

    made_for: str
    """The sha256 of all that they are a function of."""
    file: FileRecord
    num_pairs: int
    """Prompts with their answers: pairs, where pairs are learned."""
    seconds: float


@dataclass(frozen=True)
class Reference:
    """The log-probabilities of the reference, and where they are kept."""

    logps: Mapping[str, torch.Tensor]
    """By split: float32 [prompts, answers], not a number where it is not needed."""
    kept: KeptReference


def reference_of(inputs: Inputs, plan: TrainingPlan, splits: Mapping[str, Compared]) -> Reference:
    """Read the reference's log-probabilities from the checkpoints' folder, else compute them.

    Each process computes its share of them, and the first one keeps them all.

    Args:
        inputs: the inputs of the training; computing the reference resets the model's adapter to
            the initial weights.
        plan: how rows are batched.
        splits: the items that need it, by the names of their splits.

    Raises:
        StoppedError: it was asked to stop.
        UnwritableError: the disk is full, or the folder is not writable.
    """
    folder, group = inputs.checkpoints.folder, inputs.group
    made_for = _identity(what_is_computed(inputs.injected, inputs.data.record), splits)
    if kept := group.from_first(lambda: _kept(folder, made_for)):
        return Reference(load_weights(folder / _FILE), kept)
    started = time.perf_counter()
    num_pairs = sum(map(len, splits.values()))
    log.info("computing the reference's log-probabilities of %d prompts, once", num_pairs)
    initial = load_weights(inputs.injected.initial_weights.path)
    write_adapter(inputs.model, inputs.injected.lora.adapter_name, initial)
    with _computing(inputs.model, plan, group):
        own = _computed(inputs, plan, splits)
    found = _joined(group.gather(own))
    seconds = time.perf_counter() - started
    kept = group.from_first(lambda: _keep(folder, made_for, found, num_pairs, seconds))
    return Reference(found, kept)


def _computed(
    inputs: Inputs, plan: TrainingPlan, splits: Mapping[str, Compared]
) -> dict[str, torch.Tensor]:
    """Return this process's share of the reference, not a number elsewhere."""
    found = {
        name: torch.full((one.num_in_all, one.num_answers), torch.nan)
        for name, one in splits.items()
    }
    num_pairs, num_done = sum(map(len, splits.values())), 0
    for name, items in splits.items():
        for indices in items.in_order(inputs.settings.batch_size):
            if inputs.group.any(inputs.should_stop()):
                raise StoppedError(
                    f"stopped after the reference of {num_done} of {num_pairs} prompts"
                )
            [batch] = items.batches([indices])
            for micro_batch in batch["micro_batches"]:
                found[name][micro_batch["numbers"]] = _logps(inputs, plan, micro_batch).T.cpu()
            for filler in batch.get("fillers", ()):
                _logps(inputs, plan, filler)
            num_done += len(indices)
            if inputs.on_reference:
                inputs.on_reference(num_done, num_pairs)
    return found


def _logps(inputs: Inputs, plan: TrainingPlan, micro_batch: MicroBatch) -> torch.Tensor:
    here = {key: value.to(inputs.model.device) for key, value in micro_batch.items()}
    return inputs.group.compute(
        lambda: answer_logps(inputs.model, here, in_chunks=plan.loss_in_chunks)
    )


def _joined(shares: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return all that the processes computed, each of which did other pairs."""
    first, *others = shares
    for share in others:
        first = {name: torch.where(one.isnan(), share[name], one) for name, one in first.items()}
    return first


@contextmanager
def _computing(model: "PreTrainedModel", plan: TrainingPlan, group: Group) -> Iterator[None]:
    """Let the model compute as in training, but without dropout and gradients, for a while."""
    with (
        training_kernels(model, plan, is_sharding=group.is_sharding),
        eval_mode(model),
        torch.no_grad(),
    ):
        yield


def _identity(computed: Mapping[str, object], splits: Mapping[str, Compared]) -> str:
    needed = {name: one.identity for name, one in splits.items()}
    inputs = {**computed, "layout": _LAYOUT, "pairs": needed}
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
