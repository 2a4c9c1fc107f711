"""Whatever makes training fast, loss and gradients are those of the plain computation.

Plain means: padded rows, transformers' own forward and loss over all positions, PEFT's own layers.
Everything here is float32, on tiny models; the tolerances are those of sums in another order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from drawn_rows import draw_rows
from engine_steps import gpt2_base, injected, qwen2_base, random_base
from tiny_models import tiny_llama
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig

from tasks.config import BaseModelSettings, Batching, LoraSettings
from tasks.engine.batch_choice import computing, make_batches
from tasks.engine.batching import as_items
from tasks.engine.loss import can_chunk, summed_loss
from tasks.engine.tokenization import IGNORED
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = 12
ROWS = draw_rows((2, 3), (7, 1), (1, 6), (4, 4), (20, 5), prefix_length=PREFIX)
LOSS_TOLERANCE = 1e-5
"""Of the loss, relative."""
GRADIENT_TOLERANCE = 1e-4
"""Largest difference as a share of the largest gradient of the same matrix."""


@dataclass(frozen=True)
class Computed:
    """What one batch gave."""

    loss: float
    gradients: dict[str, torch.Tensor]


def gpt_neox_base(folder: Path) -> Path:
    """Save a tiny GPT-NeoX: queries, keys and values in one layer, rotary for a part of each."""
    return random_base(
        GPTNeoXConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        ),
        folder,
    )


BASES: dict[str, Callable[[Path], Path]] = {
    "Llama": tiny_llama,
    "Qwen2": qwen2_base,
    "GPT-2": gpt2_base,
    "GPT-NeoX": gpt_neox_base,
}

WAYS = {
    "padded": (Batching.PADDED, 0, 10_000),
    "padded, in parts": (Batching.PADDED, 0, 40),
    "packed": (Batching.PACKED, 0, 10_000),
    "packed, in parts": (Batching.PACKED, 0, 40),
    "shared prefix": (Batching.SHARED_PREFIX, PREFIX, 10_000),
    "shared prefix, in parts": (Batching.SHARED_PREFIX, PREFIX, 30),
}


@pytest.fixture(scope="module", params=list(BASES))
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "PreTrainedModel":
    """Give a base with an adapter that changes its answers."""
    folder = tmp_path_factory.mktemp("base")
    return adapted(BASES[request.param](folder / "base"), folder)


def adapted(
    base: Path, folder: Path, settings: BaseModelSettings | None = None
) -> "PreTrainedModel":
    """Inject an adapter into all linear layers, with weights that are not zero."""
    lora = LoraSettings(r=4, target_modules="all-linear")
    model, _ = injected(base, folder, lora, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    model.eval()  # without the dropout that GPT-2 has of its own
    return model


def plainly(model: "PreTrainedModel", *, left: bool) -> Computed:
    """Compute as a script without any of this would, padded on one side."""
    length = max(len(row.input_ids) for row in ROWS)

    def pad(values: list[int], filler: int) -> list[int]:
        filling = [filler] * (length - len(values))
        return filling + values if left else values + filling

    mask = torch.tensor([pad([1] * len(row.input_ids), 0) for row in ROWS])
    logits = model(
        input_ids=torch.tensor([pad(row.input_ids, 0) for row in ROWS]),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).logits
    labels = torch.tensor([pad(row.labels, IGNORED) for row in ROWS])
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return backward(model, [loss])


def fast(
    model: "PreTrainedModel", way: tuple[Batching, int, int], *, in_chunks: bool = False
) -> Computed:
    """Compute as a training does."""
    batching, prefix_length, batch_tokens = way
    plan = TrainingPlan(
        made_for="",
        batching=batching,
        prefix_length=prefix_length,
        batch_tokens=batch_tokens,
        loss_in_chunks=in_chunks,
        num_threads=1,
    )
    parts = make_batches(plan, pad_token_id=0)(as_items(ROWS))["parts"]
    with computing(model, plan, "default"):
        return backward(model, (summed_loss(model, part, in_chunks=in_chunks) for part in parts))


def backward(model: "PreTrainedModel", losses: object) -> Computed:
    """Add up the losses and the gradients."""
    model.zero_grad()
    total = 0.0
    for loss in losses:  # type: ignore[attr-defined]
        loss.backward()
        total += loss.item()
    trained = ((name, p.grad) for name, p in model.named_parameters() if p.requires_grad)
    return Computed(total, {name: grad.clone() for name, grad in trained if grad is not None})


def assert_same(given: Computed, expected: Computed) -> None:
    """Compare loss and every matrix's gradient."""
    assert given.loss == pytest.approx(expected.loss, rel=LOSS_TOLERANCE)
    assert given.gradients.keys() == expected.gradients.keys()
    assert len(expected.gradients) >= 16
    for name, gradient in expected.gradients.items():
        largest = gradient.abs().max().item()
        assert largest > 0, name
        difference = (given.gradients[name] - gradient).abs().max().item()
        assert difference <= GRADIENT_TOLERANCE * largest, name


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_loss_and_gradients_are_the_plain_ones(
    model: "PreTrainedModel", way: tuple[Batching, int, int], left: object
) -> None:
    """However rows are laid out and cut, and layers computed, the sums are the same."""
    assert_same(fast(model, way), plainly(model, left=bool(left)))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_loss_in_chunks_is_the_plain_one(
    model: "PreTrainedModel", way: tuple[Batching, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are never there all at once give the same loss and gradients."""
    [whole] = make_batches(plan_of_padding(), 0)(as_items(ROWS))["parts"]
    assert can_chunk(model, whole)
    monkeypatch.setattr("tasks.engine.loss._CHUNK_LOGITS", 3 * 400)
    assert_same(fast(model, way, in_chunks=True), plainly(model, left=True))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_4bit_base_gives_the_plain_gradients(
    way: tuple[Batching, int, int], tmp_path: Path
) -> None:
    """Packed weights are computed as PEFT and bitsandbytes do, in whatever layout."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = BaseModelSettings.model_validate(
        {"source": str(base), "dtype": "float32", "quantization": "4bit"}
    )
    model = adapted(base, tmp_path, settings)
    assert_same(fast(model, way), plainly(model, left=True))


def test_a_model_is_left_as_it_was(model: "PreTrainedModel") -> None:
    """After a training its layers and its attention are transformers' and PEFT's own."""
    before = plainly(model, left=True)
    fast(model, WAYS["shared prefix"])
    after = plainly(model, left=True)
    assert after.loss == before.loss
    assert all(torch.equal(after.gradients[k], g) for k, g in before.gradients.items())


def plan_of_padding() -> TrainingPlan:
    """Give the plan of all rows as one padded part."""
    return TrainingPlan(
        made_for="",
        batching=Batching.PADDED,
        prefix_length=0,
        batch_tokens=10_000,
        loss_in_chunks=False,
        num_threads=1,
    )
