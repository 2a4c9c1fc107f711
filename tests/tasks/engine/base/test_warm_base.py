"""A base that is used again is as it was loaded, or is not used again."""

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft_methods
import pytest
import torch
from engine_steps import configured, loaded, logits, random_base
from tiny_models import tiny_adapter, tiny_llama, tiny_mixture
from transformers import PreTrainedModel

from tasks import engine
from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import load_adapter
from tasks.engine.base import give_back, keeping_warm
from tasks.engine.base.tensor_checksum import weighted_sum

Change = Callable[[Any], object]


class Wrapper(torch.nn.Module):
    """A left-over around a layer, which computes the same."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer."""
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.fixture
def _warm() -> Iterator[None]:
    """Keep bases that are given back."""
    with keeping_warm():
        yield


def _query(model: Any) -> Any:  # noqa: ANN401
    return model.model.layers[0].self_attn.q_proj


def _flip(weight: torch.Tensor) -> None:
    """Flip the last bit of one value: the smallest change that there is."""
    weight.data.view(torch.int32).view(-1)[2] ^= 1


def _reorder(model: Any) -> None:  # noqa: ANN401
    layer = model.model.layers[1]
    layer._modules = dict(reversed(layer._modules.items()))


SPOILED: dict[str, tuple[Change, str]] = {
    "a weight's bit": (lambda m: _flip(_query(m).weight), "values of 'model.layers.0.self_attn"),
    "a buffer's bit": (lambda m: _flip(m.model.rotary_emb.inv_freq), "inv_freq"),
    "two rows changed places": (
        lambda m: m.lm_head.weight.data.copy_(m.lm_head.weight.data.flip(0)),
        "values of 'lm_head.weight'",
    ),
    "a weight of another dtype": (
        lambda m: setattr(_query(m).weight, "data", _query(m).weight.data.double()),
        "q_proj.weight",
    ),
    "a weight that trains": (lambda m: _query(m).weight.requires_grad_(), "q_proj.weight"),
    "another parameter with the same values": (
        lambda m: setattr(_query(m), "weight", torch.nn.Parameter(_query(m).weight)),
        "_parameters of 'model.layers.0.self_attn.q_proj'",
    ),
    "a wrapper": (
        lambda m: m.set_submodule("model.layers.0.self_attn.q_proj", Wrapper(_query(m))),
        "module 'model.layers.0.self_attn.q_proj.layer' was added",
    ),
    "a module of another type": (
        lambda m: setattr(_query(m), "__class__", type("Patched", (torch.nn.Linear,), {})),
        "replaced by a Patched",
    ),
    "a missing module": (lambda m: delattr(m.model.layers[0], "mlp"), "is missing"),
    "modules in another order": (_reorder, "another order"),
    "a hook": (
        lambda m: m.model.embed_tokens.register_forward_hook(lambda *_: None),
        "_forward_hooks",
    ),
    "a patched forward": (lambda m: setattr(_query(m), "forward", _query(m).forward), "forward"),
    "the training mode": (lambda m: m.model.layers[1].train(), "training"),
    "gradient checkpointing": (lambda m: m.gradient_checkpointing_enable(), "hook"),
    "a left-over configuration": (lambda m: setattr(m, "peft_config", {}), "peft_config"),
    "a setting": (lambda m: setattr(m.config, "use_cache", False), "LlamaConfig changed"),
    "a setting of generation": (
        lambda m: setattr(m.generation_config, "do_sample", True),
        "GenerationConfig changed",
    ),
    "a new token": (lambda m: m.resize_token_embeddings(m.config.vocab_size + 1), "changed"),
}


@pytest.mark.usefixtures("_warm")
def test_an_untouched_base_is_used_again(tiny_base: Path) -> None:
    """A base that nothing was done to is not loaded a second time."""
    model, _ = loaded(tiny_base)
    give_back(model)

    assert loaded(tiny_base)[0] is model


@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("name", SPOILED)
def test_a_changed_base_is_loaded_anew(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Whatever differs from the loaded model is found, and said, and the model not used again."""
    change, said = SPOILED[name]
    model, _ = loaded(tiny_base)
    expected = logits(model)
    model.eval()
    give_back(model)
    change(model)
    with caplog.at_level(logging.INFO):
        again, _ = loaded(tiny_base)

    assert again is not model
    assert "loaded anew" in caplog.text
    assert said in caplog.text
    assert torch.equal(logits(again), expected)


ADDED: dict[str, LoraSettings] = {
    "LoRA": LoraSettings(r=4),
    "DoRA": LoraSettings(r=4, use_dora=True),
    "a fully trained head": LoraSettings(r=4, modules_to_save=["lm_head"]),
    # Layers of their own, projections that layers share, and an update of the whole weight.
    **{method: peft_methods.settings(method) for method in ("ia3", "randlora", "oft")},
}


@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("checkpointing", ["without checkpointing", "gradient checkpointing"])
def test_what_an_adapter_added_is_taken_out(
    tiny_base: Path, tmp_path: Path, name: str, checkpointing: str
) -> None:
    """A base with an adapter's layers is given back as the model that was loaded."""
    more = {"gradient_checkpointing": checkpointing == "gradient checkpointing"}
    settings = BaseModelSettings.model_validate(
        {"source": str(tiny_base), "dtype": "float32"} | more
    )
    model, base = loaded(tiny_base, settings)
    keys, expected = list(model.state_dict()), logits(model)
    engine.inject_adapter(model, configured(base, ADDED[name]), tmp_path / "initial.safetensors")
    assert list(model.state_dict()) != keys
    give_back(model)
    again, _ = loaded(tiny_base, settings)

    assert again is model
    assert list(again.state_dict()) == keys
    assert torch.equal(logits(again), expected)
    assert not getattr(again, "peft_config", None)
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.usefixtures("_warm")
def test_an_adapter_that_was_taken_out_is_loaded_again(tiny_base: Path, tmp_path: Path) -> None:
    """Loaded into a base that had it before, under the same name, it has the same outputs."""
    folder = tiny_adapter(tiny_base, tmp_path / "adapter")
    model, _ = loaded(tiny_base)
    load_adapter(model, folder)
    expected = logits(model)
    give_back(model)
    again, _ = loaded(tiny_base)

    assert again is model
    load_adapter(again, folder)
    assert torch.equal(logits(again), expected)


@pytest.mark.usefixtures("_warm")
def test_a_base_whose_weights_moved_into_the_adapter_is_loaded_anew(
    tiny_base: Path, tmp_path: Path
) -> None:
    """PiSSA subtracts the adapter from the base: the next run gets a base from the file."""
    model, base = loaded(tiny_base)
    expected = logits(model)
    lora = configured(base, LoraSettings.model_validate({"r": 4, "init_lora_weights": "pissa"}))
    engine.inject_adapter(model, lora, tmp_path / "initial.safetensors")
    give_back(model)
    again, _ = loaded(tiny_base)

    assert again is not model
    assert torch.equal(logits(again), expected)


@pytest.mark.usefixtures("_warm")
def test_a_base_with_new_tokens_is_used_again(tiny_base: Path, tmp_path: Path) -> None:
    """The rows of new tokens are the base's, and what an adapter made of them is the adapter's."""
    settings = BaseModelSettings.model_validate(
        {"source": str(tiny_base), "dtype": "float32", "new_tokens": ["<new>"]}
    )
    model, base = loaded(tiny_base, settings)
    expected = logits(model)
    engine.inject_adapter(model, configured(base), tmp_path / "initial.safetensors")
    give_back(model)
    again, _ = loaded(tiny_base, settings)
    assert again is model
    assert torch.equal(logits(again), expected)
    give_back(again)
    assert loaded(tiny_base)[0] is not model


@pytest.mark.usefixtures("_warm")
def test_adapted_experts_are_put_back_in_their_order(tmp_path: Path) -> None:
    """PEFT puts an adapted parameter behind the others of its module, in gpt-oss behind biases."""
    folder = tiny_mixture("gpt_oss", tmp_path / "base")
    model, base = loaded(folder)
    keys, expected = list(model.state_dict()), logits(model)
    lora = configured(base, LoraSettings(r=4, target_modules=["experts", "router"]))
    engine.inject_adapter(model, lora, tmp_path / "initial.safetensors")
    give_back(model)
    again, _ = loaded(folder)
    assert again is model
    assert list(again.state_dict()) == keys
    assert torch.equal(logits(again), expected)


@pytest.mark.usefixtures("_warm")
def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """A fully trained output layer is a copy; afterwards the base has one matrix for both again."""
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    folder = random_base(LlamaConfig(**sizes, **heads, tie_word_embeddings=True), tmp_path / "base")
    model, base = loaded(folder)
    lora = configured(base, LoraSettings(r=4, modules_to_save=["lm_head"]))
    engine.inject_adapter(model, lora, tmp_path / "initial.safetensors")
    give_back(model)
    again: Any = loaded(folder)[0]

    assert again is model
    assert again.lm_head.weight is again.model.embed_tokens.weight


OTHERS: dict[str, dict[str, object]] = {
    "dtype": {"dtype": "bfloat16"},
    "labels": {"task": "sequence-classification", "labels": ["no", "yes"]},
    "quantization": {"quantization": "4bit"},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("name", OTHERS)
def test_another_base_is_never_taken_for_it(tmp_path: Path, name: str) -> None:
    """Settings that differ in anything load a base of their own, and the kept one makes room."""
    folder = tiny_llama(tmp_path / "base", hidden_size=64)
    model, _ = loaded(folder)
    give_back(model)
    other = {"source": str(folder), "dtype": "float32"} | OTHERS[name]
    loaded(folder, BaseModelSettings.model_validate(other))

    assert loaded(folder)[0] is not model


@pytest.mark.usefixtures("_warm")
def test_a_base_whose_file_changed_is_loaded_anew(tmp_path: Path) -> None:
    """The weights in memory are not those of a folder that was written again meanwhile."""
    folder = tiny_llama(tmp_path / "base")
    model, _ = loaded(folder)
    give_back(model)
    tiny_llama(folder, seed=1)

    assert loaded(folder)[0] is not model


def test_nothing_is_kept_unless_asked_for(tiny_base: Path) -> None:
    """A process of a single training drops its models, as it always did."""
    model, _ = loaded(tiny_base)
    give_back(model)

    assert loaded(tiny_base)[0] is not model


@pytest.mark.usefixtures("_warm")
def test_memory_is_flat_over_many_rounds(tiny_base: Path, tmp_path: Path) -> None:
    """Twenty adapters one after the other leave as many tensors and modules alive as three."""
    numbers = []
    for count in range(20):
        model, base = loaded(tiny_base)
        lora = configured(base, LoraSettings(r=1 + count % 3), seed=count)
        engine.inject_adapter(model, lora, tmp_path / "initial.safetensors")
        if count % 5 != 4:  # now and then a model is lost with a failed step
            give_back(model)
        del model
        if count in {3, 18}:
            numbers.append(_num_alive())

    assert numbers[0] == numbers[1]


def _num_alive() -> tuple[int, int]:
    gc.collect()
    found = gc.get_objects()
    models = sum(isinstance(one, PreTrainedModel) for one in found)
    return models, sum(isinstance(one, torch.Tensor | torch.nn.Module) for one in found)


@pytest.mark.parametrize("size", [1, 4, 4 * 3 + 2, 4096])
def test_every_bit_counts(size: int) -> None:
    """The checksum for tensors on a GPU changes with any bit, and when two words change places."""
    data = torch.arange(size, dtype=torch.uint8) * 7
    plain = weighted_sum(data).item()
    for place in range(0, size, max(1, size // 16)):
        for bit in (0, 7):
            changed = data.clone()
            changed[place] ^= 1 << bit
            assert weighted_sum(changed).item() != plain
    if size >= 8:
        swapped = data.clone()
        swapped[:4], swapped[4:8] = data[4:8], data[:4]
        assert weighted_sum(swapped).item() != plain
