"""Every technique that makes training faster or smaller gives plain training's loss and gradients.

Plain is one row at a time, or padded rows, through transformers' own loss and PEFT's own layers, in
float32. Losses must agree to a relative 1e-5, gradients to 1e-4 of the largest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from drawn_rows import draw_rows
from exact_training import (
    ARCHITECTURES,
    Gradients,
    adapted,
    assert_same,
    attention_of_lengths,
    half_4bit,
    made,
    ours,
    plain,
)
from tiny_models import tiny_llama
from torch.nn.functional import scaled_dot_product_attention

from tasks.config import BaseModelSettings, Batching
from tasks.engine.base import base_models
from tasks.engine.base.sources import find_base
from tasks.engine.batching import loss
from tasks.engine.batching.batches import PackedBatches, PaddedBatches, as_items
from tasks.engine.kernels import kernel_attention
from tasks.engine.kernels.adapter_layers import fused_adapter_layers
from tasks.engine.kernels.for_training import training_kernels
from tasks.engine.kernels.norms_and_gates import lean_layers
from tasks.engine.kernels.row_attention import attend, attending_by_row
from tasks.engine.kernels.segments import Segments
from tasks.engine.kernels.tiled_attention import attend_in_tiles
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = draw_rows((7, 3), (70, 40), (1, 6), (4, 9), (20, 2))
TECHNIQUES: dict[str, Callable[["PreTrainedModel"], tuple[float, Gradients]]] = {
    "padded": lambda model: ours(model, ROWS, PaddedBatches(0, 10**6)),
    "padded, in micro-batches": lambda model: ours(model, ROWS, PaddedBatches(0, 100)),
    "packed": lambda model: ours(model, ROWS, PackedBatches(0, 10**6)),
    "packed, in micro-batches": lambda model: ours(model, ROWS, PackedBatches(0, 100)),
    "shared prefix": lambda model: ours(model, ROWS, PackedBatches(12, 10**6)),
    "shared prefix, in micro-batches": lambda model: ours(model, ROWS, PackedBatches(12, 100)),
    "loss in chunks": lambda model: ours(model, ROWS, PaddedBatches(0, 10**6), chunks=True),
    "layers": lambda model: ours(model, ROWS, PaddedBatches(0, 10**6), layers=True),
    "all": lambda model: ours(model, ROWS, PackedBatches(12, 100), chunks=True, layers=True),
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
    assert_same(technique(model), plain(model, ROWS, side))


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_techniques_are_exact_on_a_4bit_base(
    tmp_path: Path, technique: Callable[["PreTrainedModel"], tuple[float, Gradients]]
) -> None:
    """The base's packed weights are used as they are by every technique."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = {"source": str(base), "dtype": "float32", "quantization": "4bit"}
    model = base_models.load_base(find_base(BaseModelSettings.model_validate(settings)))
    adapted(model)
    assert_same(technique(model), plain(model, ROWS, "none"))


def test_techniques_take_the_types_of_a_4bit_base_in_half_precision(tmp_path: Path) -> None:
    """With float32 norms and bfloat16 products, as PEFT prepares it, rows are packed still.

    They have padded rows' loss and gradient but for rounding.
    """
    model = half_4bit(tmp_path)
    with base_models.mixed_precision(model):
        packed = ours(model, ROWS, PackedBatches(12, 100))
        padded = ours(model, ROWS, PaddedBatches(0, 10**6))
    assert packed[0] == pytest.approx(padded[0], rel=1e-2)
    difference = sum((packed[1][name] - one).square().sum() for name, one in padded[1].items())
    assert difference < 0.05**2 * sum(one.square().sum() for one in padded[1].values())


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
        found.append(ours(model, ROWS, PaddedBatches(0, 10**6), layers=layers))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_together_are_exact_with_checkpointing(
    checkpointing: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """What a training enters is plain training, also where layers are computed twice."""
    model = made("llama")
    expected = plain(model, ROWS, "none")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    plan = TrainingPlan(
        made_for="",
        batching=Batching.PACKED,
        prefix_length=0,
        batch_tokens=100,
        loss_in_chunks=True,
        num_threads=1,
    )
    with training_kernels(model, plan, is_sharding=False):
        given = ours(model, ROWS, PackedBatches(0, 100), chunks=True)
    assert_same(given, expected)


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


NONE = -1
SEGMENTS = {
    "one row": Segments((5,), (NONE,)),
    "three rows": Segments((3, 130, 135), (NONE, NONE, NONE)),
    "two rows behind a prefix": Segments((70, 75, 220), (NONE, 0, 0)),
    "five short rows behind a prefix": Segments((4, 5, 6, 7, 40, 41), (NONE, 0, 0, 0, 0, 0)),
    "two conversations behind a prefix": Segments(
        (9, 80, 83, 160, 163, 240, 249, 251, 254), (NONE, 0, 1, 1, 3, 3, 0, 6, 6)
    ),
    "a conversation, and a row": Segments((2, 4, 75, 80, 83), (NONE, 0, 1, 1, NONE)),
}


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_attention_by_row_is_masked_attention(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile by tile, row by row, or at once as on a GPU, all is as with the dense mask."""
    torch.manual_seed(0)
    num_tokens = segments.ends[-1]
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for span, context in zip(segments.spans(), segments.contexts(), strict=True):
        for at in span:
            mask[at, [*context, *range(span.start, at + 1)]] = True
    shapes = ((4, 8), (2, 8), (2, 6))
    query, key, value = inputs = tuple(
        torch.randn(1, heads, num_tokens, size, dtype=torch.float64, requires_grad=True)
        for heads, size in shapes
    )
    dense = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    tiled = attend_in_tiles(query, key, value, segments, 0.3)
    by_row, _ = attend(torch.nn.Module(), query, key, value, segments.as_mask(), 0.3, 1e-30)
    monkeypatch.setattr(kernel_attention, "varlen_attn", attention_of_lengths)
    at_once = kernel_attention.attend_at_once(query, key, value, segments, 0.3)
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
