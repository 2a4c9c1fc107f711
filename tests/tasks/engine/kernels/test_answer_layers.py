"""Layers prepared for answering compute what they did before, and are left as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import logits
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tasks.engine.kernels import answering_layers
from tasks.engine.kernels.adapter_layers import adapted_layers

_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ENOUGH = 10**9


def _model(base: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:  # noqa: ANN401
    """Load a base with a random adapter."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=_ALL, init_lora_weights=False, **more)
    model.add_adapter(config)
    return model.eval()


def _is_own(module: torch.nn.Module) -> bool:
    return "forward" not in vars(module)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("is_adapted", [True, False])
def test_logits_are_the_same(tiny_base: Path, packs: bool, is_adapted: bool) -> None:  # noqa: FBT001
    """With the adapter and without it, up to the order of sums, and exactly afterwards."""
    model = _model(tiny_base)
    if not is_adapted:
        model.disable_adapters()
    before = logits(model)
    with answering_layers(model, most_copied_bytes=_ENOUGH if packs else 0), torch.inference_mode():
        within = logits(model)
        replaced = [module for module in model.modules() if not _is_own(module)]
    assert torch.allclose(within, before, rtol=1e-4, atol=1e-5)
    assert bool(replaced) == (packs or is_adapted)
    assert all(map(_is_own, model.modules()))
    assert torch.equal(logits(model), before)


def test_bfloat16_is_computed_as_precisely(tiny_base: Path) -> None:
    """Rounding is no worse than PEFT's, against the same weights in float32."""
    model = _model(tiny_base, torch.bfloat16)
    before = logits(model)
    with answering_layers(model, most_copied_bytes=_ENOUGH), torch.inference_mode():
        within = logits(model)
    exact = logits(model.float())
    assert (within - exact).norm() < 1.2 * (before - exact).norm()


def test_dora_is_left_to_peft(tiny_base: Path) -> None:
    """What is not plain LoRA keeps its own forward; the layers within it may be packed."""
    model = _model(tiny_base, use_dora=True)
    before = logits(model)
    with answering_layers(model, most_copied_bytes=_ENOUGH), torch.inference_mode():
        assert all(map(_is_own, adapted_layers(model)))
        assert torch.allclose(logits(model), before, rtol=1e-4, atol=1e-5)


def test_a_large_base_is_not_copied(tiny_base: Path) -> None:
    """Weights that would take too much memory twice are used as they are."""
    model = _model(tiny_base)
    with answering_layers(model, most_copied_bytes=1000):
        assert all(_is_own(layer.get_base_layer()) for layer in adapted_layers(model))


def test_layers_are_restored_after_a_failure(tiny_base: Path) -> None:
    """An error within the block leaves no replaced forward behind."""
    model = _model(tiny_base)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        answering_layers(model, most_copied_bytes=_ENOUGH),
    ):
        raise RuntimeError("out of memory")
    assert all(map(_is_own, model.modules()))
