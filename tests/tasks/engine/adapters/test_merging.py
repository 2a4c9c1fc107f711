"""A merged model answers as base and adapter did, or is not written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import gpt2_base, logits, qwen2_base
from peft import LoraConfig, PeftModel, get_peft_model
from plain_adapters import lora_folder
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tasks.config import BaseModelSettings, Dtype
from tasks.engine.adapters import merging
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.adapters.merging import export_merged
from tasks.errors import UserError, VerificationError
from tasks.records import MergedRecord

BASES: dict[str, Callable[[Path], Path]] = {
    "llama": tiny_llama,
    "tied qwen2": qwen2_base,
    "tied gpt2 of Conv1D": gpt2_base,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["EMBEDDINGS"]},
    "both ends whole": {"modules_to_save": ["EMBEDDINGS", "lm_head"]},
    "adapted ends": {"target_modules": ["EMBEDDINGS", "lm_head"]},
    "biases": {"bias": "all"},
    "single tokens": {"trainable_token_indices": [1, 2]},
}


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base."""
    return BASES[request.param](tmp_path_factory.mktemp("base") / "base")


def settings(base: Path, **changes: object) -> BaseModelSettings:
    """Return how the base was loaded in training."""
    given = {"source": str(base), "dtype": "float32"} | changes
    return BaseModelSettings.model_validate(given)


def an_adapter(base: Path, folder: Path, kind: str = "plain") -> Path:
    """Save an adapter of this kind with plain PEFT."""
    model_type = json.loads((base / "config.json").read_text())["model_type"]
    names = {"EMBEDDINGS": "wte" if model_type == "gpt2" else "embed_tokens"}
    given: dict[str, Any] = {
        key: [names.get(str(one), one) for one in value] if isinstance(value, list) else value
        for key, value in KINDS[kind].items()
    }
    given.setdefault("target_modules", ["c_attn" if model_type == "gpt2" else "q_proj"])
    return lora_folder(base, folder, **given)


def merge(adapter: Path, base: BaseModelSettings, dtype: Dtype = Dtype.FLOAT32) -> MergedRecord:
    """Merge into a folder beside the adapter."""
    return export_merged(find_adapter(adapter), base, adapter.parent / "merged", dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_answers_as_base_and_adapter(base: Path, tmp_path: Path, kind: str) -> None:
    """Plain transformers gives the logits that PEFT gives for base and adapter."""
    adapter = an_adapter(base, tmp_path / "adapter", kind)
    record = merge(adapter, settings(base))

    merged = logits(AutoModelForCausalLM.from_pretrained(record.folder))
    plain = AutoModelForCausalLM.from_pretrained(base)
    unchanged = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert record.logit_difference <= record.tolerance
    assert not torch.equal(merged, unchanged)


def test_the_folder_is_a_whole_model(tmp_path: Path) -> None:
    """Weights are safetensors; tokenizer, generation settings, card and manifest are there."""
    base = tiny_llama(tmp_path / "base")
    record = merge(an_adapter(base, tmp_path / "adapter"), settings(base))

    names = {path.name for path in record.folder.iterdir()}
    assert {"config.json", "generation_config.json", "README.md", "manifest.json"} <= names
    assert [name for name in names if name.endswith((".safetensors", ".bin"))] == [
        "model.safetensors"
    ]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (record.folder, base))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template
    manifest = json.loads((record.folder / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["adapter_sha256"] == record.adapter_sha256


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_half_precision_is_saved_and_measured(tmp_path: Path, dtype: Dtype) -> None:
    """In half precision the model is half as large; its rounding is reported and bounded."""
    base = tiny_llama(tmp_path / "base")
    record = merge(an_adapter(base, tmp_path / "adapter"), settings(base), dtype)
    model = AutoModelForCausalLM.from_pretrained(record.folder)
    assert model.dtype == getattr(torch, dtype.value)
    assert 0 < record.logit_difference <= record.tolerance


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_packed_base_s_gap_is_told(tmp_path: Path, quantization: str) -> None:
    """What was trained on a packed base is merged into the full one, and compared with both."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    adapter = an_adapter(base, tmp_path / "adapter")
    record = merge(adapter, settings(base, quantization=quantization))
    plain = merge_again(adapter, settings(base))
    assert record.quantized_gap
    assert record.quantized_gap.quantization == quantization
    assert record.quantized_gap.logit_difference > record.tolerance
    assert 0 < record.quantized_gap.same_next_token <= 1
    assert record.logit_difference == plain.logit_difference


def merge_again(adapter: Path, base: BaseModelSettings) -> MergedRecord:
    """Merge once more, to another folder."""
    return export_merged(find_adapter(adapter), base, adapter.parent / "again", Dtype.FLOAT32)


def test_beyond_the_tolerance_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merged model whose logits differ too much is refused, and no folder is left."""
    base = tiny_llama(tmp_path / "base")
    adapter = an_adapter(base, tmp_path / "adapter")
    monkeypatch.setitem(merging.TOLERANCES, Dtype.BFLOAT16, 1e-4)
    with pytest.raises(VerificationError, match="the merged model: logits differ"):
        merge(adapter, settings(base), Dtype.BFLOAT16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    """In float16 large weights become infinite and the logits no numbers: no folder is left."""
    base = tiny_llama(tmp_path / "base")
    adapter = an_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    weights = {k: v * (1e6 if ".lora_B." in k else 1) for k, v in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(VerificationError, match="logits differ by nan"):
        merge(adapter, settings(base), Dtype.FLOAT16)
    assert not (tmp_path / "merged").exists()


def test_a_classifier_on_a_tied_base_is_merged(tmp_path: Path) -> None:
    """Its output layer is no other end of the embeddings, which may be adapted."""
    base = qwen2_base(tmp_path / "base")
    classes = {"num_labels": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base, **classes),
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="SEQ_CLS"),
    )
    model.save_pretrained(tmp_path / "adapter")
    told = settings(base, task="sequence-classification", labels=["a", "b"])
    (tmp_path / "adapter" / "manifest.json").write_text(
        json.dumps({"base_model": {"reference": str(base), "labels": ["a", "b"]}})
    )
    record = merge(tmp_path / "adapter", told)
    assert record.logit_difference <= record.tolerance


def test_another_score_is_refused(tmp_path: Path) -> None:
    """When merged model and adapter score differently, no folder is left."""
    base = tiny_llama(tmp_path / "base")
    adapter = find_adapter(an_adapter(base, tmp_path / "adapter"))
    scores = iter((0.98, 0.97))
    with pytest.raises(VerificationError, match=r"97\.00% of the rows correctly, .* 98"):
        export_merged(
            adapter, settings(base), tmp_path / "merged", Dtype.FLOAT32, lambda _: next(scores)
        )
    assert not (tmp_path / "merged").exists()


def test_a_changed_head_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left tied, the output layer would take what is merged into the embeddings; it is refused."""
    base = qwen2_base(tmp_path / "base")
    monkeypatch.setattr(merging, "_untie", lambda *_: False)
    with pytest.raises(VerificationError, match="logits differ"):
        merge(an_adapter(base, tmp_path / "adapter", "adapted ends"), settings(base))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that is there is refused before anything is loaded."""
    base = tiny_llama(tmp_path / "base")
    adapter = an_adapter(base, tmp_path / "adapter")
    shutil.copytree(adapter, tmp_path / "merged")
    with pytest.raises(UserError, match="exists"):
        merge(adapter, settings(tmp_path / "gone"))
