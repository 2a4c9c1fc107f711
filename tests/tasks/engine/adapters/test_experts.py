"""A mixture's experts are adapted as PEFT adapts them, through all six steps."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import (
    injected,
    logits,
    prepared,
    save_here,
    train_here,
    trained,
    training,
)
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import MIXTURES, tiny_mixture
from transformers import AutoModelForCausalLM

from tasks import engine
from tasks.config import BaseModelSettings, InferenceSettings, LoraSettings
from tasks.engine import workbench
from tasks.engine.adapters import AdapterSet, export_merged, find_adapter, write_gguf
from tasks.engine.adapters.injection import reinject
from tasks.engine.adapters.lora import resolve_lora
from tasks.engine.base import find_base, load_base
from tasks.errors import UserError
from tasks.records import ResolvedLora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OLD_NAMES = {"mixtral": ["w1", "w2", "w3"]} | dict.fromkeys(
    ("qwen2_moe", "qwen3_moe", "olmoe"), ["gate_proj", "up_proj", "down_proj"]
)


@pytest.fixture(scope="module", params=MIXTURES)
def kind(request: pytest.FixtureRequest) -> str:
    """Return a mixture's `model_type`."""
    return str(request.param)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders in which mixtures are saved on demand."""
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: folder / name for name in MIXTURES}


@pytest.fixture
def base(kind: str, mixtures: dict[str, Path]) -> Path:
    """Return the folder of a mixture."""
    return saved(kind, mixtures)


@pytest.fixture
def mixtral(mixtures: dict[str, Path]) -> Path:
    """Return the folder of a Mixtral."""
    return saved("mixtral", mixtures)


def saved(kind: str, mixtures: dict[str, Path]) -> Path:
    """Save a mixture, once."""
    return mixtures[kind] if mixtures[kind].exists() else tiny_mixture(kind, mixtures[kind])


def settings(base: Path, **changes: object) -> BaseModelSettings:
    """Return settings of a base."""
    given = {"source": str(base), "dtype": "float32"} | changes
    return BaseModelSettings.model_validate(given)


def resolved(base: Path, **given: object) -> ResolvedLora:
    """Resolve settings of LoRA for a base, without its weights."""
    return resolve_lora(LoraSettings.model_validate({"r": 4} | given), find_base(settings(base)))


def plain(base: Path) -> "PreTrainedModel":
    """Load a base with transformers alone."""
    return AutoModelForCausalLM.from_pretrained(base)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_experts_go_through_all_six_steps(base: Path, tmp_path: Path) -> None:
    """Trained, resumed, saved, loaded by PEFT, sampled, switched and merged, logits are the same."""
    everything = LoraSettings(r=4, target_modules="all-linear")
    model, record = injected(base, tmp_path, everything)
    assert record.logit_difference == 0
    whole = train_here(model, record, tmp_path, training(max_steps=3))
    live = logits(model)
    moved = [name for name in whole_weights(whole.weights.path) if "experts" in name]
    assert len(moved) == 2 * 2 * 2  # A and B of two parameters in two layers

    again = load_base(record.lora.base)
    reinject(again, record)
    stopped = training(max_steps=3, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train_here(again, record, tmp_path / "cut", stopped, interrupt_at(2))
    again = load_base(record.lora.base)
    reinject(again, record)
    resumed = train_here(again, record, tmp_path / "cut", stopped)
    assert resumed.weights.sha256 == whole.weights.sha256

    one = save_here(model, whole, tmp_path)
    assert one.round_trip_logit_difference == 0
    assert logits(PeftModel.from_pretrained(plain(base), one.folder)).equal(live)
    data = prepared(record.lora.base, tmp_path).record
    engine.load_adapter(load_base(record.lora.base), one, data, InferenceSettings(sample_rows=1))

    other = another(base, one.folder, tmp_path / "other")
    adapters = AdapterSet.on(settings(base))
    unchanged = logits(adapters.model)
    adapters.load(one.folder, "one")
    adapters.load(other, "other")
    second = logits(PeftModel.from_pretrained(plain(base), other))
    for name, expected in (("one", live), ("other", second), ("one", live), (None, unchanged)):
        with adapters.using(name) as switched:
            assert logits(switched).equal(expected)
    adapters.unload("one")
    with adapters.using("other") as switched:
        assert logits(switched).equal(second)
    adapters.unload("other")
    assert [*adapters.model.state_dict()] == [*plain(base).state_dict()]

    merged = export_merged(find_adapter(one.folder), settings(base), tmp_path / "merged")
    assert merged.logit_difference < 1e-6 * max(1.0, merged.largest_logit)


def whole_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read an adapter's weights."""
    from safetensors.torch import load_file

    return load_file(file)


def another(base: Path, like: Path, folder: Path) -> Path:
    """Save an adapter with random weights on the same parameters, of another rank."""
    given = json.loads((like / "adapter_config.json").read_text())
    config = LoraConfig(
        r=2,
        target_modules=given["target_modules"],
        target_parameters=given["target_parameters"],
        init_lora_weights=False,
    )
    torch.manual_seed(5)
    get_peft_model(plain(base), config).save_pretrained(folder)
    return folder
