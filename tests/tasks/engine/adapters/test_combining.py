"""Several adapters as one: what their sum must be, and what can't be added up."""

import json
from pathlib import Path

import pytest
import torch
from engine_steps import logits, save_here, trained
from peft import PeftModel
from plain_adapters import lora_folder
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from tasks.config import BaseModelSettings
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.combining import METHODS, Combination, combine
from tasks.engine.adapters.folders import find_adapter
from tasks.errors import UserError
from tasks.records import CombinedRecord

DIFFERENT: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "alike": ({}, {}),
    "ranks": ({"r": 2}, {"r": 5}),
    "scales": ({"lora_alpha": 3}, {"use_rslora": True}),
    "targets": ({}, {"target_modules": ["v_proj"]}),
    "layers": ({"rank_pattern": {"layers.0.self_attn.q_proj": 4}}, {}),
}


def pair(
    base: Path, folder: Path, first: dict[str, object], second: dict[str, object]
) -> list[Path]:
    """Save two adapters."""
    return [
        lora_folder(base, folder / str(seed), seed=seed, **config)
        for seed, config in enumerate((first, second))
    ]


def combined(
    base: Path, folders: list[Path], how: Combination, weights: tuple[float, float] = (1.0, -0.5)
) -> CombinedRecord:
    """Combine adapters into a folder beside the first."""
    settings = BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})
    target = folders[0].parent / "combined"
    return combine([find_adapter(folder) for folder in folders], weights, settings, target, how)


def updates(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to each weight, as PEFT computes it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if "default" in getattr(module, "lora_A", {})
    }


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("how", [Combination("cat"), Combination("svd", rank=16)], ids=str)
def test_the_exact_methods_add_up_the_updates(
    tiny_base: Path, tmp_path: Path, kind: str, how: Combination
) -> None:
    """Of adapters of other ranks, scales or targets, each layer gets the weighted sum."""
    folders = pair(tiny_base, tmp_path, *DIFFERENT[kind])
    record = combined(tiny_base, folders, how)
    found = updates(tiny_base, record.folder)
    first, second = (updates(tiny_base, folder) for folder in folders)
    assert found.keys() == first.keys() | second.keys()
    for name, update in found.items():
        zero = torch.zeros_like(update)
        expected = first.get(name, zero) - 0.5 * second.get(name, zero)
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_adapter_loads_in_peft_and_here(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    """Loaded by plain PEFT and beside others here, a combined adapter gives equal logits."""
    folders = pair(tiny_base, tmp_path, {}, {})
    record = combined(tiny_base, folders, Combination(method))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), record.folder
    )
    settings = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    ours = AdapterSet.on(settings)
    ours.load(folders[0], "first")
    ours.load(record.folder, "combined")
    assert torch.equal(logits(ours.model), logits(theirs))
    assert record.logit_effect > 0


def test_the_seed_makes_dare_repeatable(tiny_base: Path, tmp_path: Path) -> None:
    """DARE drops by the seed alone: equal seeds give equal adapters, others do not."""
    folders = pair(tiny_base, tmp_path, {}, {})
    found = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        record = combined(tiny_base, folders, Combination("dare_ties", seed=seed))
        found.append((record.folder / "adapter_model.safetensors").read_bytes())
        record.folder.rename(tmp_path / f"kept{len(found)}")
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_manifest_tells_what_went_in(tiny_base: Path, tmp_path: Path) -> None:
    """Base, prompts and tokenizer are the first's; weights are identified by their sha256."""
    saved = save_here(*trained(tiny_base, tmp_path), tmp_path)
    other = lora_folder(tiny_base, tmp_path / "other")
    record = combined(tiny_base, [saved.folder, other], Combination(), (1.0, 0.25))
    manifest = json.loads((record.folder / "manifest.json").read_text())
    assert manifest["template"] == "chat"
    assert manifest["base_model"]["fingerprint"] == saved.base.fingerprint
    assert manifest["combined"]["weights"] == record.weights
    assert record.weights[saved.weights.sha256] == 1.0


REFUSED: dict[str, tuple[dict[str, object], Combination, str]] = {
    "DoRA": ({"use_dora": True}, Combination(), "has use_dora"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, Combination(), "has modules_to_save"),
    "other rank": ({"r": 3}, Combination("ties"), "same r value"),
    "too high a rank": (
        {"target_modules": ["v_proj"]},
        Combination("svd", rank=17),
        "a rank of at most 16",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_can_t_be_added_up_is_refused(
    tiny_base: Path, tmp_path: Path, case: tuple[dict[str, object], Combination, str]
) -> None:
    """What PEFT would leave out or can't combine is one message, and no folder."""
    config, how, message = case
    folders = pair(tiny_base, tmp_path, {}, config)
    with pytest.raises(UserError, match=message):
        combined(tiny_base, folders, how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_another_base_s_adapter_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter of another shape does not go into the sum."""
    other = tiny_llama(tmp_path / "wide", hidden_size=64)
    folders = [lora_folder(tiny_base, tmp_path / "a"), lora_folder(other, tmp_path / "b")]
    with pytest.raises(UserError, match="does not fit"):
        combined(tiny_base, folders, Combination())


def test_layers_that_peft_would_leave_out_are_told(tiny_base: Path, tmp_path: Path) -> None:
    """PEFT takes the first adapter's choice of layers for all: then there is no adapter."""
    folders = pair(tiny_base, tmp_path, {"layers_to_transform": [0]}, {"layers_to_transform": [1]})
    with pytest.raises(UserError, match=r"leave 1 adapted layers out .*layers\.1\.self_attn"):
        combined(tiny_base, folders, Combination())
    assert not (tmp_path / "combined").exists()


def test_the_combined_adapter_is_prompted_as_the_first(tmp_path: Path) -> None:
    """The first's chat template is kept; a difference in another's prompts is reported."""
    base = tiny_llama(tmp_path / "base", chat_template=False)
    folders = pair(base, tmp_path, {}, {})
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folders[0])
    record = combined(base, folders, Combination())
    assert "1 was trained with another prompt template" in record.warnings[-1]
    settings = BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})
    loaded = AdapterSet.on(settings).load(record.folder)
    assert (loaded.template, loaded.tokenizer.chat_template) == ("chat", tokenizer.chat_template)
