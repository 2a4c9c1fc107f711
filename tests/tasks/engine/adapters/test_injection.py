"""Step 3: the adapter is where it should be, only it trains, and it changes nothing yet."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import configured, gpt2_base, injected, loaded, logits, qwen2_base, train_here

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import adapter_state
from tasks.engine.adapters.injection import inject, probe_logits, trainable
from tasks.errors import VerificationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARIANTS = [
    {},
    {"target_modules": "all-linear"},
    {"use_rslora": True, "lora_dropout": 0.5},
    {"modules_to_save": ["lm_head"]},
    {"bias": "all"},
    {"init_lora_weights": "gaussian"},
    {"target_modules": ["embed_tokens", "lm_head"]},
]
ROUNDING = [
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "pissa"},
    {"use_dora": True},
]


def settings(**given: object) -> LoraSettings:
    """Return LoRA settings."""
    return LoraSettings.model_validate({"r": 4} | given)


def test_each_target_in_each_layer_has_an_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """The adapter layers in the loaded model are those counted on the skeleton."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, record = injected(tiny_base, tmp_path, settings(target_modules="all-linear"))
    layers = [n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]

    assert record.layers == record.lora.matches
    assert len(layers) == sum(record.layers.per_target.values()) == 14
    assert record.num_trainable_parameters == record.lora.num_trainable_parameters


@pytest.mark.parametrize("given", [*VARIANTS[:4], *ROUNDING], ids=str)
def test_only_the_adapter_trains(tiny_base: Path, tmp_path: Path, given: dict[str, object]) -> None:
    """Gradients go to LoRA's matrices and to what trains whole, and nowhere else."""
    model, record = injected(tiny_base, tmp_path, settings(**given))
    allowed = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.", "lm_head.modules_to_save.")
    names = [name for name, _ in trainable(model)]

    assert all(any(part in name for part in allowed) for name in names)
    assert any("modules_to_save" in name for name in names) == ("modules_to_save" in given)
    assert record.num_trainable_parameters == sum(p.numel() for _, p in trainable(model))


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_a_fresh_adapter_changes_no_logit(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """B begins at zero: the model with a fresh adapter gives the base's logits exactly."""
    before = logits(loaded(tiny_base)[0])
    model, record = injected(tiny_base, tmp_path, settings(**given))

    assert torch.equal(logits(model), before)
    assert record.logit_difference == 0


@pytest.mark.parametrize("given", ROUNDING, ids=str)
def test_other_beginnings_change_logits_by_rounding(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """PiSSA, DoRA and orthogonal matrices add up to the base within rounding."""
    before = logits(loaded(tiny_base)[0])
    model, record = injected(tiny_base, tmp_path, settings(**given))

    assert torch.allclose(logits(model), before, atol=1e-4)
    assert record.logit_difference < 1e-4


@pytest.mark.parametrize("save", [gpt2_base, qwen2_base])
def test_other_architectures_take_an_adapter(tmp_path: Path, save: type) -> None:
    """GPT-2 (Conv1D) and Qwen2 (biases, tied embeddings) are adapted in each layer."""
    base = save(tmp_path / "base")
    before = logits(loaded(base)[0])
    model, record = injected(base, tmp_path, settings(target_modules="all-linear"))

    assert set(record.layers.per_layer) == {"0", "1"}
    assert torch.equal(logits(model), before)


def test_adapters_are_float32_on_a_half_precision_base(tiny_base: Path, tmp_path: Path) -> None:
    """The adapter's weights are float32, the base's stay bfloat16."""
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "bfloat16"})
    lora = settings(modules_to_save=["lm_head"])
    model, _ = injected(tiny_base, tmp_path, lora, half)

    assert {p.dtype for _, p in trainable(model)} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


@pytest.mark.parametrize("first_name", ["first", "second-to-none"])
def test_a_second_adapter_leaves_the_first_alone(
    tiny_base: Path, tmp_path: Path, first_name: str
) -> None:
    """A second named adapter trains on the same model while the first is frozen and untouched."""
    model, record = injected(tiny_base, tmp_path, settings(adapter_name=first_name))
    train_here(model, record, tmp_path)
    first = adapter_state.read_adapter(model, first_name)

    other = configured(record.lora.base, settings(adapter_name="second", r=2))
    second = inject(model, other, tmp_path / "second.safetensors")
    assert all(adapter_state.is_adapter_parameter(n, "second") for n, _ in trainable(model))
    trained = train_here(model, second, tmp_path / "again")
    assert trained.adapter_change > 0
    assert adapter_state.weight_change(first, adapter_state.read_adapter(model, first_name)) == 0


def test_an_adapter_is_told_by_its_whole_name() -> None:
    """A parameter of adapter `tickets2` is not taken for one of `tickets`."""
    name = "model.layers.0.self_attn.q_proj.lora_A.tickets2.weight"

    assert adapter_state.is_adapter_parameter(name)
    assert adapter_state.is_adapter_parameter(name, "tickets2")
    assert not adapter_state.is_adapter_parameter(name, "tickets")
    assert not adapter_state.is_adapter_parameter("lm_head.original_module.weight")


@pytest.mark.parametrize(
    "given", [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}], ids=str
)
def test_equal_seeds_give_equal_adapters(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """The initial weights come from the seed alone, whatever was drawn before, and from it."""
    base = loaded(tiny_base)[1]
    files = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(number)
        lora = configured(base, settings(**given), seed=seed)
        files.append(inject(loaded(tiny_base)[0], lora, tmp_path / str(number)).initial_weights)

    assert files[0].sha256 == files[1].sha256 != files[2].sha256


def test_injecting_draws_nothing_from_the_caller(tiny_base: Path, tmp_path: Path) -> None:
    """The process's own random numbers go on as if no adapter had been made."""
    model, base = loaded(tiny_base)
    record = configured(base)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    inject(model, record, tmp_path / "a")
    assert torch.equal(torch.rand(4), expected)


def test_the_probe_leaves_the_model_as_it_was(tiny_base: Path, tmp_path: Path) -> None:
    """Probing keeps training mode and active adapters, with adapters silenced or not."""
    model, record = injected(tiny_base, tmp_path)
    train_here(model, record, tmp_path)
    model.train()
    adapted = probe_logits(model)

    assert not torch.equal(probe_logits(model, adapters=False), adapted)
    assert torch.equal(probe_logits(model), adapted)
    assert model.training


def test_a_missed_target_is_found_out(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter that is not in every layer that was counted fails the proof."""
    model, base = loaded(tiny_base)
    record = configured(base, settings(target_modules=["q_proj"]))
    model.get_submodule("model.layers.1.self_attn").q_proj = torch.nn.Identity()
    with pytest.raises((VerificationError, ValueError)):
        inject(model, record, tmp_path / "a")


def test_an_adapter_that_changes_the_model_is_found_out(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh adapter with weights in B fails the proof."""
    model, base = loaded(tiny_base)
    record = configured(base)
    random = record.peft_config.model_copy(update={"init_lora_weights": False})
    with pytest.raises(VerificationError, match="the fresh adapter changes logits by"):
        inject(model, record.model_copy(update={"peft_config": random}), tmp_path / "a")


def test_a_base_that_would_train_is_found_out(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base weight that is not frozen fails the proof, by its name."""
    model, base = loaded(tiny_base)
    add = type(model).set_adapter

    def set_adapter_and_thaw(self: "PreTrainedModel", name: str) -> None:
        add(self, name)
        self.get_parameter("lm_head.weight").requires_grad_()

    monkeypatch.setattr(type(model), "set_adapter", set_adapter_and_thaw)
    with pytest.raises(VerificationError, match=r"outside it, such as lm_head\.weight"):
        inject(model, configured(base), tmp_path / "a")
