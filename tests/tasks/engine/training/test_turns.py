"""Conversations that are one row a turn are trained on as any rows, whatever they share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn_rows import draw_conversations
from engine_steps import injected, prepared, training

from tasks import engine
from tasks.config import LoraSettings
from tasks.engine.data.tokens.token_files import write_token_file
from tasks.engine.data.tokens.tokenization import Tokenized
from tasks.engine.training.callbacks import OnTraining, TrainingProgress
from tasks.records import DataRecord, InjectedRecord, TrainedRecord

TURNS = draw_conversations(3, 1, 2, 4, 3, 1, 2)
DROPOUT = LoraSettings(r=4, lora_dropout=0.3)


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


def turns_as_data(record: InjectedRecord, folder: Path) -> DataRecord:
    """Return data whose training rows and held-out rows are those of conversations."""
    data = prepared(record.lora.base, folder)
    examples = [replace(data.train.examples[0], row=number) for number in range(len(TURNS))]
    for file in data.record.tokens:
        made = (Tokenized(examples[row.conversation or 0], row) for row in TURNS)
        write_token_file(file.path, made)
    tokens = tuple(file.of(file.path) for file in data.record.tokens)
    return data.record.model_copy(update={"tokens": tokens})


def train_on_turns(
    base: Path,
    folder: Path,
    lora: LoraSettings | None = None,
    on_progress: OnTraining | None = None,
    **settings: object,
) -> TrainedRecord:
    """Train a fresh adapter on the conversations, on from a checkpoint in the folder, if any."""
    model, record = injected(base, folder, lora)
    data = turns_as_data(record, folder)
    changed = training(**{"learning_rate": 1e-3} | settings)
    return engine.train_adapter(model, record, data, changed, folder / "checkpoints", on_progress)


def test_shared_turns_are_learned_as_padded_rows(tiny_base: Path, tmp_path: Path) -> None:
    """Training losses and held-out losses are those of rows that share nothing, in each step."""
    found = {
        batching: train_on_turns(
            tiny_base, tmp_path / batching, batching=batching, batch_size=len(TURNS)
        )
        for batching in ("padded", "packed", "shared-prefix", "auto")
    }
    assert found["auto"].batching == "shared-prefix"
    assert found["auto"].loss_curve == found["shared-prefix"].loss_curve
    losses = {
        name: [p.train_loss or p.eval_loss for p in one.loss_curve] for name, one in found.items()
    }
    for name in ("packed", "shared-prefix"):
        assert losses[name] == pytest.approx(losses["padded"], rel=1e-5)


def test_a_run_on_turns_that_is_killed_ends_as_if_it_had_not_been(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Killed at each step, in batches that split some conversations, it ends with the same bits."""
    settings: dict[str, Any] = {"batch_size": 4, "batch_tokens": 40, "checkpoint_minutes": 0}
    whole = train_on_turns(tiny_base, tmp_path / "whole", DROPOUT, max_steps=6, **settings)
    for step in range(1, 6):

        def on_progress(now: TrainingProgress, last: int = step) -> None:
            if now.step == last and not now.metrics:
                raise Killed

        with pytest.raises(Killed):
            train_on_turns(
                tiny_base, tmp_path / "cut", DROPOUT, on_progress, max_steps=6, **settings
            )
    resumed = train_on_turns(tiny_base, tmp_path / "cut", DROPOUT, max_steps=6, **settings)
    assert whole.batching == "shared-prefix"
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.loss_curve == whole.loss_curve
