"""Patterns reach what they reach in PEFT, and what reaches nothing is an error."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import configured, injected, loaded, logits, save_here, train_here
from exact_training import ARCHITECTURES, adapted, gradients
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_models import tiny_mixture
from transformers import AutoModelForCausalLM, LlamaConfig

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import (
    AdapterSet,
    export_merged,
    find_adapter,
    name_patterns,
    resolve_lora,
    write_gguf,
)
from tasks.engine.adapters.combining import Combination, combine
from tasks.engine.adapters.injection import adapted_layers, inject
from tasks.engine.base import find_base
from tasks.engine.kernels import fused_adapter_layers, num_unfused
from tasks.errors import UserError, VerificationError
from tasks.records import AdaptedLayer, LoraConfigRecord, ResolvedLora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
GIVEN: dict[str, dict[str, object]] = {
    "rank by name": {"rank_pattern": {"q_proj": 2}},
    "rank by expression": {"rank_pattern": {r"layers\.1\..*_proj": 2, r"0.mlp.(up|down)_proj": 8}},
    "alpha by name": {"alpha_pattern": {"v_proj": 3.5}},
    "both, with rsLoRA": {
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 5},
        "use_rslora": True,
    },
    "rank with DoRA": {"rank_pattern": {"q_proj": 2}, "use_dora": True},
    "one layer": {"layers_to_transform": 1},
    "a list of layers": {"layers_to_transform": [0]},
    "all but a name": {"exclude_modules": ["q_proj"]},
    "all but an expression": {"exclude_modules": r".*\.0\..*"},
    "all of them": {
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"up_proj": 3},
        "layers_to_transform": [1],
        "exclude_modules": ["q_proj"],
    },
}
EXPRESSIONS = [r".*\.(q|v)_proj", r"model\.layers\.1\.mlp\..*_proj"]


def settings(**given: object) -> LoraSettings:
    """Return LoRA settings for all linear layers."""
    return LoraSettings.model_validate({"r": 4, "target_modules": "all-linear"} | given)


def of(base: Path) -> BaseModelSettings:
    """Return settings of a base."""
    return BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})


def resolved(base: Path, **given: object) -> ResolvedLora:
    """Resolve settings for a base."""
    return resolve_lora(settings(**given), find_base(of(base)))


def refusal(base: Path, **given: object) -> str:
    """Return the message with which settings are refused."""
    with pytest.raises(UserError) as caught:
        resolved(base, **given)
    return str(caught.value)


def by_peft(base: Path, **given: object) -> dict[str, AdaptedLayer]:
    """Return what plain PEFT adapts for these settings, with rank and alpha."""
    values = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR} | given
    model = get_peft_model(plain(base), LoraConfig(**values))
    return {
        name.removeprefix("base_model.model."): AdaptedLayer(
            r=module.r["default"], lora_alpha=module.lora_alpha["default"]
        )
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def plain(base: Path) -> "PreTrainedModel":
    """Load a base with transformers alone."""
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_patterns_reach_what_they_reach_in_peft(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """Rank and alpha of each layer are PEFT's, as resolved, as injected, and as counted."""
    expected = by_peft(tiny_base, **given)
    record = resolved(tiny_base, **given)
    assert record.adapted == expected

    model, in_model = injected(tiny_base, tmp_path, settings(**given))
    assert adapted_layers(model, "default") == expected
    assert in_model.num_trainable_parameters == record.num_trainable_parameters
    assert in_model.layers == record.matches


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_is_matched_as_in_peft(tiny_base: Path, expression: str) -> None:
    """A string that can't be a name is matched against whole names, and its matches are listed."""
    record = resolved(tiny_base, target_modules=expression)
    assert record.adapted == by_peft(tiny_base, target_modules=expression)
    assert sorted(record.chosen_by[expression]) == [*record.peft_config.target_modules]
    assert record.matches.per_target == {expression: len(record.adapted)}


def test_the_record_lists_what_each_pattern_reached(tiny_base: Path) -> None:
    """Every pattern has the dotted names of what it reaches, after those before it."""
    record = resolved(tiny_base, **GIVEN["all of them"])
    up = ("model.layers.1.mlp.up_proj",)
    assert record.reached["rank_pattern"] == {"up_proj": up}
    assert record.reached["alpha_pattern"] == {"up_proj": up}
    assert record.reached["exclude_modules"] == {
        "q_proj": tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    }
    assert {*record.reached["layers_to_transform"]["1"]} == {*record.adapted}


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a rank for nothing": (
        {"rank_pattern": {"q_prj": 2}},
        "lora.rank_pattern ['q_prj'] reach nothing that is adapted; did you mean q_proj?",
    ),
    "a rank for what is not adapted": (
        {"rank_pattern": {"v_proj": 2}, "target_modules": ["q_proj"]},
        "lora.rank_pattern ['v_proj'] reach nothing that is adapted; did you mean q_proj?",
    ),
    "a rank that another hides": (
        {"rank_pattern": {".*_proj": 2, "q_proj": 2}},
        "lora.rank_pattern ['q_proj'] reach nothing that is adapted",
    ),
    "a rank by its place": (
        {"rank_pattern": {"q_proj": 3, ".*_proj": 2}},
        "lora.rank_pattern: 'q_proj' and '.*_proj' both reach model.layers.0.self_attn.q_proj",
    ),
    "an alpha for nothing": (
        {"alpha_pattern": {"layers.7": 2}},
        "lora.alpha_pattern ['layers.7'] reach nothing that is adapted",
    ),
    "a layer that is not there": (
        {"layers_to_transform": [1, 7]},
        "lora.layers_to_transform [7] reach nothing that is adapted; layers with adapted modules",
    ),
    "nothing to exclude": (
        {"exclude_modules": ["lm_head"]},
        "lora.exclude_modules ['lm_head'] reach nothing that is adapted",
    ),
    "a module around layers to exclude": (
        {"exclude_modules": ["self_attn"]},
        "lora.exclude_modules ['self_attn'] reach nothing that is adapted",
    ),
    "a name that is excluded": (
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["q_proj"]},
        "lora.target_modules ['q_proj'] select only what lora.exclude_modules leave out",
    ),
    "all that there is": (
        {"exclude_modules": ".*_proj"},
        "select only what lora.exclude_modules leave out",
    ),
    "an expression for nothing": (
        {"target_modules": "(q|v)_proj"},
        "match nothing in LlamaForCausalLM; a regular expression has to match whole dotted names",
    ),
    "no expression": (
        {"target_modules": "*_proj"},
        'lora.target_modules is "*_proj", which is no regular expression',
    ),
    "layers of an expression": (
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        "lora.layers_to_transform can't be used with a regular expression",
    ),
    "an expression in a list": ({"target_modules": [".*q_proj"]}, "match nothing"),
    "a parameter that is not there": (
        {"target_parameters": ["q_prj.weight"]},
        "['q_prj.weight'] match nothing in LlamaForCausalLM; did you mean q_proj.weight?",
    ),
    "a layer and its parameter": (
        {"target_parameters": ["q_proj.weight"]},
        "PEFT can't adapt LlamaForCausalLM with these settings of lora",
    ),
    "an odd rank": (
        {"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}},
        "which needs an even rank; lora.r is 4, lora.rank_pattern {'q_proj': 3}",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_reaches_nothing_is_refused(
    tiny_base: Path, given: dict[str, object], message: str
) -> None:
    """It is refused by the setting's name, with what was given and what is possible."""
    assert message in refusal(tiny_base, **given)


def test_a_slow_expression_is_refused(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expression that takes for ever does not stop the run, and is refused by its key."""
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    assert "lora.rank_pattern[0] can't be tried" in refusal(
        tiny_base, rank_pattern={r"(\w+\.?)+!": 2}
    )


def test_patterns_narrow_down_experts_too(tmp_path: Path) -> None:
    """PEFT ignores layers and exclusions for parameters; here they are written out."""
    base = tiny_mixture("mixtral", tmp_path)
    one = resolved(base, target_modules="experts", layers_to_transform=[1])
    experts = "model.layers.1.mlp.experts"
    assert {*one.adapted} == {f"{experts}.gate_up_proj", f"{experts}.down_proj"}
    assert isinstance(one.peft_config, LoraConfigRecord)
    assert one.peft_config.target_parameters == tuple(sorted(one.adapted))
    assert one.adapted[f"{experts}.gate_up_proj"].r == 8
    less = resolved(base, target_modules="experts", exclude_modules=["down_proj"])
    assert isinstance(less.peft_config, LoraConfigRecord)
    assert less.peft_config.target_parameters == ("experts.gate_up_proj",)
    none = resolved(base, exclude_modules="experts")
    assert isinstance(none.peft_config, LoraConfigRecord)
    assert none.peft_config.target_parameters is None
    assert "experts, which stay frozen" in none.warnings[0]
    by_expression = resolved(base, target_modules=r".*\.1\..*\.(experts|q_proj)")
    assert {name.rpartition(".")[2] for name in by_expression.adapted} == {
        "q_proj",
        "gate_up_proj",
        "down_proj",
    }


def test_another_rank_in_the_model_is_found(tiny_base: Path, tmp_path: Path) -> None:
    """Step 3 proves the rank and alpha of each layer: an adapter of others is refused."""
    model, base = loaded(tiny_base)
    record = configured(base, settings(rank_pattern={"q_proj": 2}))
    name = "model.layers.0.self_attn.q_proj"
    for wrong in (AdaptedLayer(r=4, lora_alpha=8), AdaptedLayer(r=2, lora_alpha=9)):
        other = record.model_copy(update={"adapted": {**record.adapted, name: wrong}})
        with pytest.raises(VerificationError, match=rf"1 adapter layers .* such as {name}: r=2"):
            inject(loaded(tiny_base)[0], other, tmp_path / "initial.safetensors")
    assert inject(model, record, tmp_path / "initial.safetensors")


def test_layers_of_their_own_rank_are_computed_as_by_peft() -> None:
    """The fused layers give the gradients of PEFT's own, whatever each layer's rank and scale."""
    torch.manual_seed(1)
    model = adapted(
        AutoModelForCausalLM.from_config(LlamaConfig(**ARCHITECTURES["llama"])),
        rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 7},
        alpha_pattern={"v_proj": 3},
    )
    assert num_unfused(model) == 0
    ids = torch.arange(24).reshape(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    expected = gradients(model)
    with fused_adapter_layers(model):
        model(input_ids=ids, labels=ids).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_a_trained_adapter_with_patterns_is_the_same_everywhere(
    tiny_base: Path, tmp_path: Path, init: str
) -> None:
    """Saved, loaded by PEFT, beside another adapter, merged and combined, logits stay the same."""
    given = GIVEN["rank by expression"] | {"alpha_pattern": {"v_proj": 3.5}}
    model, record = injected(tiny_base, tmp_path, settings(init_lora_weights=init, **given))
    one = save_here(model, train_here(model, record, tmp_path), tmp_path)
    live, largest = logits(model), logits(model).abs().max().item()

    def same(other: "PreTrainedModel | PeftModel") -> bool:
        return bool((logits(other) - live).abs().max().item() < 1e-4 * largest)

    folder = find_adapter(one.folder)
    assert same(PeftModel.from_pretrained(plain(tiny_base), one.folder))
    card = (one.folder / "README.md").read_text()
    assert "| rank_pattern | `{" in card
    assert r"(up\|down)_proj" in card
    adapters = AdapterSet.on(of(tiny_base))
    adapters.load(folder, "one")
    adapters.load(folder, "two")
    adapters.switch("one")
    assert same(adapters.model)
    export_merged(folder, of(tiny_base), tmp_path / "merged")
    assert same(plain(tmp_path / "merged"))
    halves = [0.5, 0.5]
    for method in ("cat", "svd"):
        into = tmp_path / method
        combine([folder, folder], halves, of(tiny_base), into, Combination(method))
        assert same(PeftModel.from_pretrained(plain(tiny_base), into))
    with pytest.raises(UserError, match=r"layers of different ranks .* use cat or svd"):
        combine([folder, folder], halves, of(tiny_base), tmp_path / "t", Combination("ties"))
    assert write_gguf(folder, of(tiny_base), tmp_path / "adapter.gguf").num_adapter_parameters
    assert json.loads((one.folder / "adapter_config.json").read_text())["rank_pattern"]
