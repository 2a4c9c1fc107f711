"""PEFT's other methods: each that can be used goes through the six steps, the rest is refused."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import configured, injected, loaded, logits, prepared, save_here, train_here
from engine_steps import training as short_training
from peft import PeftModel, PeftType
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM

from tasks import engine
from tasks.config import InferenceSettings, LoraSettings
from tasks.engine.adapters import adapter_state, methods
from tasks.engine.adapters.injection import reinject
from tasks.engine.training.callbacks import TrainingProgress
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.records import InjectedRecord, TrainedRecord

SMALL: dict[str, dict[str, Any]] = {
    # PEFT's defaults are for large layers.
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 16},
}
"""Options for layers of 64 inputs; a method that is not named has its defaults."""
OTHERS = [name for name in methods.usable_methods() if name != methods.LORA]


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


def kill_at_first_step(now: TrainingProgress) -> None:
    """End the training once its first step is done."""
    if now.step == 1 and not now.metrics:
        raise Killed


def settings(method: str, **more: object) -> LoraSettings:
    """Return settings for a method on two layers; norms are what `ln_tuning` is for."""
    targets = "auto" if method == "ln_tuning" else ["q_proj", "down_proj"]
    given = {"method": method, "target_modules": targets, "options": SMALL.get(method, {})}
    return LoraSettings.model_validate(given | more)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama of one layer."""
    return tiny_llama(tmp_path_factory.mktemp("base"), layers=1, hidden_size=64)


def killed_and_resumed(record: "InjectedRecord", folder: Path) -> "TrainedRecord":
    """Train in two processes' worth of attempts, of which the first ends after one step."""
    plan = short_training(max_steps=2, eval_steps=None, checkpoint_minutes=0)
    location = Path(record.lora.base.location)
    for on_progress in (kill_at_first_step, None):
        model = loaded(location, record.lora.base.settings)[0]
        reinject(model, record)
        try:
            return train_here(model, record, folder, plan, on_progress)
        except Killed:
            continue
    raise AssertionError


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_goes_through_the_six_steps(base: Path, tmp_path: Path, method: str) -> None:
    """It trains alone, resumes to the same bytes, and plain PEFT loads what was saved."""
    model, record = injected(base, tmp_path, settings(method))
    before = {name: w.clone() for name, w in adapter_state.base_weights(model)}
    plan = short_training(max_steps=2, eval_steps=None, checkpoint_minutes=0)
    trained = train_here(model, record, tmp_path / "whole", plan)
    after = dict(adapter_state.base_weights(model))
    assert trained.adapter_change > 0
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = killed_and_resumed(record, tmp_path / "cut")
    assert again.weights.sha256 == trained.weights.sha256

    saved = save_here(model, trained, tmp_path)
    expected = logits(model)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), saved.folder)
    assert torch.equal(logits(plain), expected)
    fresh = loaded(base)[0]
    data = prepared(record.lora.base, tmp_path).record
    sampling = InferenceSettings(sample_rows=1, max_new_tokens=2)
    engine.load_adapter(fresh, saved, data, sampling)
    assert torch.equal(logits(fresh), expected)
