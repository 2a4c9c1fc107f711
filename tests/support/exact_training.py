"""Tiny models of several architectures, trained on a batch as transformers does and as we do."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from tiny_models import tiny_llama
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tasks.config import BaseModelSettings
from tasks.engine.base.base_models import load_base
from tasks.engine.base.sources import find_base
from tasks.engine.batching import loss
from tasks.engine.batching.batches import Batches, PackedBatches, as_items
from tasks.engine.data.tokens.tokenization import TokenizedRow
from tasks.engine.kernels.adapter_layers import fused_adapter_layers
from tasks.engine.kernels.last_layer import last_layer_where_looked_at
from tasks.engine.kernels.norms_and_gates import lean_layers
from tasks.engine.kernels.row_attention import attending_by_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
}
GPT2 = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1} | {
    f"{place}_pdrop": 0.0 for place in ("attn", "embd", "resid")
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "gpt2": GPT2,
    "gemma": SIZES,
    "gpt_neox": SIZES | {"attention_dropout": 0.0, "hidden_dropout": 0.0},
}
Gradients = dict[str, torch.Tensor]


def adapted(model: "PreTrainedModel", **lora: Any) -> "PreTrainedModel":  # noqa: ANN401
    """Add an adapter on all linear layers that changes the model's answers."""
    model.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **lora)
    model.add_adapter(config)
    return model.train()  # type: ignore[no-any-return]


def made(name: str, **lora: Any) -> "PreTrainedModel":  # noqa: ANN401
    """Make a random model of an architecture, with an adapter."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[name](**ARCHITECTURES[name])
    return adapted(AutoModelForCausalLM.from_config(config), **lora)


def half_4bit(folder: Path) -> "PreTrainedModel":
    """Make a 4-bit model with an adapter; PEFT casts its norms to float32."""
    base = tiny_llama(folder / "base", hidden_size=64)
    settings = {"source": str(base), "dtype": "bfloat16", "quantization": "4bit"}
    model = load_base(find_base(BaseModelSettings.model_validate(settings)))
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return adapted(model)


def gradients(model: "PreTrainedModel") -> Gradients:
    """Take the gradients of all that trains."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain(model: "PreTrainedModel", rows: list[TokenizedRow], side: str) -> tuple[float, Gradients]:
    """Train as transformers does on one batch of rows that are padded on a side, or not batched."""
    total = 0.0
    for group in [rows] if side in {"left", "right"} else [[row] for row in rows]:
        longest = max(len(row.input_ids) for row in group)
        inputs: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in group:
            padding = longest - len(row.input_ids)
            for name, values, filler in (
                ("input_ids", row.input_ids, 0),
                ("labels", row.labels, -100),
                ("attention_mask", [1] * len(row.input_ids), 0),
            ):
                filled = [filler] * padding
                inputs[name].append(filled + values if side == "left" else values + filled)
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        positions = (tensors["attention_mask"].cumsum(1) - 1).clamp(min=0)
        mean = model(**tensors, position_ids=positions, use_cache=False).loss
        summed = mean * sum(row.num_trained_tokens for row in group)
        summed.backward()
        total += summed.item()
    return total, gradients(model)


def ours(
    model: "PreTrainedModel",
    rows: list[TokenizedRow],
    batches: Batches,
    *,
    chunks: bool = False,
    layers: bool = False,
) -> tuple[float, Gradients]:
    """Train as the engine does on one batch."""
    total = 0.0
    with ExitStack() as stack:
        if layers:
            stack.enter_context(lean_layers(model))
            stack.enter_context(fused_adapter_layers(model))
            stack.enter_context(last_layer_where_looked_at(model))
        if isinstance(batches, PackedBatches):
            stack.enter_context(attending_by_row(model))
        for micro_batch in batches(as_items(rows))["micro_batches"]:
            if chunks:
                assert loss.can_chunk(model, micro_batch, loss.labeled_logits(model, micro_batch))
            summed = loss.summed_loss(model, micro_batch, in_chunks=chunks)
            summed.backward()
            total += summed.item()
    return total, gradients(model)


def assert_same(
    given: tuple[float, Gradients], expected: tuple[float, Gradients], tolerance: float = 1e-4
) -> None:
    """Compare loss and every gradient, which may differ by a share of the largest."""
    assert given[0] == pytest.approx(expected[0], rel=1e-5)
    assert given[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0, name
        assert (given[1][name] - gradient).abs().max() < tolerance * largest, name


def attention_of_lengths(  # noqa: PLR0913 - the real one's signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
    **how: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Stand in for PyTorch's `varlen_attn`, which CPUs have no kernel for."""
    scale = how.pop("scale")
    assert how == {"window_size": (-1, 0), "enable_gqa": True}
    assert query_ends.dtype == key_ends.dtype == torch.int32
    lengths = [ends.diff().tolist() for ends in (query_ends, key_ends)]
    assert [max(sizes) for sizes in lengths] == [longest_query, longest_key]
    parts = (
        part.transpose(0, 1).split(sizes, dim=1)
        for part, sizes in zip(
            (query, key, value), (lengths[0], lengths[1], lengths[1]), strict=True
        )
    )
    done = [
        scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool(),
            scale=scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(done)
