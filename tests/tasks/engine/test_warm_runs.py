"""Adapters trained one after the other on one base in memory, beside each alone in a process."""

from pathlib import Path

import pytest
import torch
from engine_steps import configured, loaded, prepared, save_here, train_here, training
from tiny_models import tiny_llama
from transformers import PreTrainedModel

from tasks import engine
from tasks.config import BaseModelSettings, InferenceSettings, LoraSettings
from tasks.engine import workbench
from tasks.engine.base import give_back
from tasks.records import BaseSource, SavedRecord

# What a run leaves in the base differs by what it trained.
BEFORE = (
    LoraSettings(r=8),
    LoraSettings(r=4, modules_to_save=["lm_head"]),
    LoraSettings(r=2, target_modules=["q_proj"]),
)


def six_steps(folder: Path, settings: BaseModelSettings, lora: LoraSettings) -> SavedRecord:
    """Run the six steps as the tasks do, with the model on the workbench between them."""
    folder.mkdir()
    model, base = engine.load_base(settings)
    file = folder / "initial.safetensors"
    injected = engine.inject_adapter(model, configured(base, lora, seed=3), file)
    record = train_here(model, injected, folder, training(max_steps=2))
    workbench.put(record, model)
    del model
    saved = save_here(workbench.take(record), record, folder)
    fresh = workbench.take(saved.base)
    data = prepared(base, folder).record
    few = InferenceSettings(sample_rows=1, max_new_tokens=2)
    engine.load_adapter(fresh, saved, data, few)
    give_back(fresh)
    return saved


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "quantization": "4bit"},
        {"dtype": "float32", "gradient_checkpointing": True},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_adapter_on_a_used_base_has_the_bytes_of_a_lone_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    """Byte for byte the same file, whatever was trained on the base before it."""
    from tasks.engine.base import base_models

    folder = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = BaseModelSettings.model_validate({"source": str(folder)} | more)
    alone = six_steps(tmp_path / "alone", settings, LoraSettings(r=4)).weights.sha256
    loads = []
    load = base_models._load

    def counted(source: BaseSource) -> PreTrainedModel:
        loads.append(source)
        return load(source)

    monkeypatch.setattr(base_models, "_load", counted)
    with workbench.keeping_base():
        for number, lora in enumerate(BEFORE):
            with workbench.single_run():
                six_steps(tmp_path / f"before-{number}", settings, lora)
        with workbench.single_run():
            after = six_steps(tmp_path / "after", settings, LoraSettings(r=4)).weights.sha256

    assert after == alone
    assert len(loads) == 1


def test_a_run_that_ended_early_leaves_its_base_to_the_next(tiny_base: Path) -> None:
    """A model that waits for a step that never comes is the next run's base."""
    with workbench.keeping_base():
        with workbench.single_run():
            model, record = loaded(tiny_base)
            workbench.put(record, model)

        assert loaded(tiny_base)[0] is model


def test_the_number_of_threads_is_that_of_the_process_again() -> None:
    """A resumed training sets it, and the next run would round otherwise."""
    before = torch.get_num_threads()
    with workbench.single_run():
        torch.set_num_threads(before + 1)

    assert torch.get_num_threads() == before
