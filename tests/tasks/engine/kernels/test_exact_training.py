"""Every technique that makes training faster or smaller gives plain training's loss and gradients.

Plain is one row at a time, or padded rows, through transformers' own loss and PEFT's own layers, in
float32. Losses must agree to a relative 1e-5, gradients to 1e-4 of the largest.
"""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from drawn_rows import draw_rows
from peft import LoraConfig
from tiny_models import tiny_llama
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tasks.config import BaseModelSettings
from tasks.engine.base import base_models
from tasks.engine.base.sources import find_base
from tasks.engine.batching import loss
from tasks.engine.batching.batches import Batches, PackedBatches, PaddedBatches, as_items
from tasks.engine.kernels import kernel_attention
from tasks.engine.kernels.adapter_layers import fused_adapter_layers
from tasks.engine.kernels.lean_layers import lean_layers
from tasks.engine.kernels.row_attention import attend, attending_by_row
from tasks.engine.kernels.tiled_attention import attend_in_tiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = draw_rows((7, 3), (70, 40), (1, 6), (4, 9), (20, 2))
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


def gradients(model: "PreTrainedModel") -> Gradients:
    """Take the gradients of all that trains."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain(model: "PreTrainedModel", side: str) -> tuple[float, Gradients]:
    """Train as transformers does on one batch of rows that are padded on a side, or not batched."""
    total = 0.0
    for group in [ROWS] if side in {"left", "right"} else [[row] for row in ROWS]:
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
    model: "PreTrainedModel", batches: Batches, *, chunks: bool = False, layers: bool = False
) -> tuple[float, Gradients]:
    """Train as the engine does on one batch."""
    total = 0.0
    with ExitStack() as stack:
        if layers:
            stack.enter_context(lean_layers(model))
            stack.enter_context(fused_adapter_layers(model))
        if isinstance(batches, PackedBatches):
            stack.enter_context(attending_by_row(model))
        for micro_batch in batches(as_items(ROWS))["micro_batches"]:
            if chunks:
                assert loss.can_chunk(model, micro_batch, loss.labeled_logits(model, micro_batch))
            summed = loss.summed_loss(model, micro_batch, in_chunks=chunks)
            summed.backward()
            total += summed.item()
    return total, gradients(model)


def assert_same(given: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    """Compare loss and every gradient."""
    assert given[0] == pytest.approx(expected[0], rel=1e-5)
    assert given[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0, name
        assert (given[1][name] - gradient).abs().max() < 1e-4 * largest, name


TECHNIQUES: dict[str, Callable[["PreTrainedModel"], tuple[float, Gradients]]] = {
    "padded": lambda model: ours(model, PaddedBatches(0, 10**6)),
    "padded, in micro-batches": lambda model: ours(model, PaddedBatches(0, 100)),
    "packed": lambda model: ours(model, PackedBatches(0, 10**6)),
    "packed, in micro-batches": lambda model: ours(model, PackedBatches(0, 100)),
    "shared prefix": lambda model: ours(model, PackedBatches(12, 10**6)),
    "shared prefix, in micro-batches": lambda model: ours(model, PackedBatches(12, 100)),
    "loss in chunks": lambda model: ours(model, PaddedBatches(0, 10**6), chunks=True),
    "layers": lambda model: ours(model, PaddedBatches(0, 10**6), layers=True),
    "all": lambda model: ours(model, PackedBatches(12, 100), chunks=True, layers=True),
}


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_technique_gives_plain_training_s_loss_and_gradients(
    architecture: str,
    technique: Callable[["PreTrainedModel"], tuple[float, Gradients]],
    side: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However plain training pads, each technique alone and all together change nothing."""
    monkeypatch.setattr(loss, "_CHUNK_LOGITS", 7 * 400)
    model = made(architecture)
    assert_same(technique(model), plain(model, side))


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_techniques_are_exact_on_a_4bit_base(
    tmp_path: Path, technique: Callable[["PreTrainedModel"], tuple[float, Gradients]]
) -> None:
    """The base's packed weights are used as they are by every technique."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = {"source": str(base), "dtype": "float32", "quantization": "4bit"}
    model = base_models.load_base(find_base(BaseModelSettings.model_validate(settings)))
    adapted(model)
    assert_same(technique(model), plain(model, "none"))


@pytest.mark.parametrize(
    "lora",
    [{"lora_dropout": 0.3}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}],
    ids=["dropout", "DoRA", "rsLoRA", "biases"],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_are_exact_for_every_kind_of_lora(architecture: str, lora: dict[str, Any]) -> None:
    """What a layer cannot do in one operation, dropout apart, PEFT's own forward does."""
    model = made(architecture, **lora)
    found = []
    for layers in (False, True):
        torch.manual_seed(2)
        found.append(ours(model, PaddedBatches(0, 10**6), layers=layers))
    assert_same(found[1], found[0])


def test_replaced_layers_come_back() -> None:
    """Outside training a model's layers are its own; within, all that can be are replaced."""
    model = made("llama")
    with lean_layers(model), fused_adapter_layers(model):
        replaced = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(replaced) == 2 * (2 + 1 + 7) + 1
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("architecture", ["gemma", "gpt2"])
def test_other_formulas_are_left_alone(architecture: str) -> None:
    """Gemma scales by 1 + weight and gates with GELU: its layers only look alike."""
    model = made(architecture)
    with lean_layers(model):
        assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


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
    assert how == {"scale": 0.3, "window_size": (-1, 0), "enable_gqa": True}
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
            scale=0.3,
            enable_gqa=True,
        )[0].transpose(0, 1)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(done)


@pytest.mark.parametrize("ends", [(0, 5), (0, 3, 130, 135), (70, 75, 220), (4, 5, 6, 7, 40, 41)])
def test_attention_by_row_is_masked_attention(
    ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile by tile, row by row, or at once as on a GPU, all is as with the dense mask."""
    torch.manual_seed(0)
    owner = torch.zeros(ends[-1], dtype=torch.int64)
    for number, (start, end) in enumerate(pairwise(ends), 1):
        owner[start:end] = number
    seen = (owner[:, None] == owner) | (owner == 0)
    mask = seen & torch.ones_like(seen).tril()
    shapes = ((4, 8), (2, 8), (2, 6))
    query, key, value = inputs = tuple(
        torch.randn(1, heads, ends[-1], size, dtype=torch.float64, requires_grad=True)
        for heads, size in shapes
    )
    dense = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    tiled = attend_in_tiles(query, key, value, ends, 0.3)
    ends_only = torch.tensor(ends)[None, None, None]
    by_row, _ = attend(torch.nn.Module(), query, key, value, ends_only, 0.3, 1e-30)
    monkeypatch.setattr(kernel_attention, "varlen_attn", attention_of_lengths)
    at_once = kernel_attention.attend_at_once(query, key, value, ends, 0.3)
    weights = torch.randn_like(tiled)
    expected = torch.autograd.grad((dense.transpose(1, 2) * weights).sum(), inputs)
    for given in (tiled, by_row, at_once):
        torch.testing.assert_close(given, dense.transpose(1, 2))
        for mine, theirs in zip(
            torch.autograd.grad((given * weights).sum(), inputs), expected, strict=True
        ):
            torch.testing.assert_close(mine, theirs)


def test_a_part_s_ends_are_read_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look would wait for all that is under way."""
    model = made("llama")
    [micro_batch] = PackedBatches(0, 10_000)(as_items(ROWS))["micro_batches"]
    read: list[torch.Tensor] = []
    as_list = torch.Tensor.tolist

    def noted(tensor: torch.Tensor) -> object:
        read.append(tensor)
        return as_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    with attending_by_row(model), torch.no_grad():
        loss.labeled_logits(model, micro_batch)
    assert len(read) == 1
