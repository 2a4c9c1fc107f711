"""What works with what, as `docs/lora.md` says: each yes and each no is tried."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT
from engine_steps import injected, logits, random_base, save_here, train_here
from engine_steps import training as short_training
from peft_methods import ALONE, NOT_MERGED, OTHERS
from transformers import AutoModelForCausalLM, Qwen2Config

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import AdapterSet, export_merged, methods, write_gguf
from tasks.engine.adapters.folders import find_adapter
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of
from tasks.tracking.served_model.adapters import load_adapter
from tasks.tracking.served_model.base import add_embeddings

SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "use_rslora": {"use_rslora": True},
    "init_lora_weights: pissa": {"init_lora_weights": "pissa"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "use_dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "all"},
    "base_model.new_tokens": {},
}
"""Settings of LoRA by what their row begins with."""


def rows() -> dict[str, dict[str, bool | None]]:
    """Return the table: by its first column, yes, no or neither in the others."""
    page = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
    table = page.partition("## What works with what")[2].strip().split("\n\n")[0].splitlines()
    head, _, *lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    said = {"yes": True, "no": False, "no²": False, "not tried": None}
    return {
        line[0]: {name: said[cell] for name, cell in zip(head[1:], line[1:], strict=True)}
        for line in lines
    }


def row_of(name: str) -> dict[str, bool | None]:
    """Return the row of a setting."""
    [found] = [row for first, row in rows().items() if first.strip("`").startswith(name)]
    return found


def works(attempt: Callable[[], object]) -> bool:
    """Return whether something works, or is refused in one message."""
    try:
        attempt()
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Qwen2 with biases and an output layer of its own."""
    config = Qwen2Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return random_base(config, tmp_path_factory.mktemp("base") / "base")


def trained_folder(base: Path, folder: Path, name: str, **of_base: object) -> Path:
    """Take an adapter through steps 1 to 5; return its folder."""
    settings = LoraSettings.model_validate({"r": 4, "target_modules": ["q_proj"]} | SETTINGS[name])
    given = {"source": str(base), "dtype": "float32"} | of_base
    if name == "base_model.new_tokens":
        given["new_tokens"] = ["<part>"]
    base_settings = BaseModelSettings.model_validate(given)
    model, record = injected(base, folder, settings, base_settings)
    trained = train_here(model, record, folder, short_training(max_steps=2, eval_steps=None))
    return save_here(model, trained, folder).folder


def served(base: Path, folder: Path, expected: torch.Tensor) -> None:
    """Load an adapter as MLflow's model does."""
    model = AutoModelForCausalLM.from_pretrained(base)
    add_embeddings(model, folder)
    load_adapter(model, str(folder), "adapter_0", str(base))
    assert torch.allclose(logits(model), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_lora_works_where_the_table_says_so(
    base: Path, tmp_path: Path, name: str
) -> None:
    """Merged, as GGUF, served, beside a second adapter, and trained on a base in 4 bits."""
    adapter = find_adapter(trained_folder(base, tmp_path, name))
    of_base = base_of(adapter)
    export_merged(adapter, of_base, tmp_path / "merged")
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    served(base, adapter.path, expected)
    several = AdapterSet.on(of_base)
    quantized = {"quantization": "4bit"}
    found = {
        "`--merged`": True,
        "MLflow": True,
        "GGUF": works(lambda: write_gguf(adapter, of_base, tmp_path / "adapter.gguf")),
        "4-bit base": works(lambda: trained_folder(base, tmp_path / "4bit", name, **quantized)),
        "several on one base": works(lambda: [several.load(adapter, n) for n in ("one", "two")]),
    }
    assert found == {column: said for column, said in row_of(name).items() if column in found}


def test_each_method_of_peft_has_its_place_in_the_table() -> None:
    """Each is in one row, with what PEFT has for it and what `test_methods.py` finds."""
    said: dict[str, list[dict[str, bool | None]]] = {name: [] for name in OTHERS}
    for first, row in rows().items():
        for name in re.findall(r"`(\w+)`", first):
            if name in said:
                said[name].append(row)
    for name, found in said.items():
        assert found == [
            {
                "`--merged`": name not in NOT_MERGED,
                "GGUF": False,
                "vLLM": False,
                "MLflow": True,
                "4-bit base": methods.find_method(name).takes_quantized_layers,
                "several on one base": name not in ALONE,
            }
        ], name
