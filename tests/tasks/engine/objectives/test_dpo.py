"""Learning from pairs: losses, metrics and gradients are TRL's, whatever the layout of the rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exact_preferences import (
    LAYOUTS,
    UNLIMITED,
    assert_same_measures,
    ours,
    trl_arguments,
)
from exact_training import ARCHITECTURES, Gradients, adapted, assert_same, gradients, made
from preference_pairs import draw_pairs, for_trl
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tasks.config import BaseModelSettings
from tasks.engine.base.base_models import load_base
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import PackedBatches
from tasks.engine.batching.preference_batches import PreferenceBatches
from tasks.engine.data.tokens.tokenization import TokenizedRow
from tasks.engine.training.group import ALONE
from tasks.engine.training.items import Sharing
from tasks.engine.training.pairs import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = ((12, 3, 5), (4, 6, 2), (9, 1, 1), (2, 4, 9), (7, 8, 3))
ROWS = draw_pairs(*SIZES)
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid, beta 0.5": {"beta": 0.5},
    "hinge": {"loss_type": ["hinge"]},
    "ipo": {"loss_type": ["ipo"], "beta": 0.3},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "apo_down": {"loss_type": ["apo_down"]},
    "mpo": {"loss_type": ["sigmoid", "hinge", "sft"], "loss_weights": [0.8, 0.2, 1.5]},
}


def theirs(
    model: "PreTrainedModel",
    base: "PreTrainedModel",
    rows: list[TokenizedRow],
    settings: dict[str, Any],
    folder: Path,
) -> tuple[float, Gradients, dict[str, float]]:
    """Learn from the pairs as TRL does."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from datasets import Dataset

    trainer = trl.DPOTrainer(
        model=model,
        ref_model=base,
        args=trl.DPOConfig(**trl_arguments(folder, **settings)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(chat_template=False),
    )
    for one in filter(lambda one: one.requires_grad, model.parameters()):
        one.data = one.data.float()  # TRL rounds the adapter of a 4-bit base to bfloat16
    model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(for_trl(rows)))
    loss.backward()
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    return loss.item(), gradients(model), logged


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_losses_metrics_and_gradients_are_those_of_trl(name: str, tmp_path: Path) -> None:
    """On the same batch of pairs, each loss, what is logged of it and each gradient are TRL's."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**ARCHITECTURES[name]))
    model = made(name)
    for settings in LOSSES.values():
        expected = theirs(model, base, ROWS, settings, tmp_path)
        found = ours(made(name), ROWS, settings)
        assert_same(found[:2], expected[:2])
        assert_same_measures(found[2], expected[2])


def test_a_4bit_base_has_the_loss_and_gradients_of_trl(tmp_path: Path) -> None:
    """Its packed weights are used as they are, by the reference, too, and in each layout."""
    folder = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = {"source": str(folder), "dtype": "float32", "quantization": "4bit"}
    source = find_base(BaseModelSettings.model_validate(settings))
    model, base = adapted(load_base(source)), load_base(source)
    rows = draw_pairs(*SIZES, num_tokens=base.config.vocab_size)
    expected = theirs(model, base, rows, {}, tmp_path)
    for layout in LAYOUTS:
        found = ours(model, rows, {}, layout)
        assert_same(found[:2], expected[:2])
        assert_same_measures(found[2], expected[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_the_layout_of_the_rows_changes_nothing(name: str, layout: str) -> None:
    """Packed, with prompts computed once, in micro-batches, in chunks: as padded in one batch."""
    for settings in (LOSSES["ipo"], LOSSES["mpo"]):
        expected = ours(made(name), ROWS, settings)
        for max_tokens, chunks in ((UNLIMITED, True), (30, False), (1, True)):
            found = ours(made(name), ROWS, settings, layout, max_tokens, chunks=chunks)
            assert_same(found[:2], expected[:2])
            assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_is_never_split(layout: str) -> None:
    """A micro-batch has both answers of each of its pairs, also of one above the limit."""
    for max_tokens in (1, 20, 35, 60, UNLIMITED):
        batches = PreferenceBatches(LAYOUTS[layout](max_tokens), max_tokens)
        pairs = Pairs(ROWS, Sharing(batches, "", ALONE))
        made_of = batches([pairs[number] for number in range(len(pairs))])["micro_batches"]
        numbers = [number for one in made_of for number in one["numbers"].tolist()]
        assert sorted(numbers) == list(range(len(pairs)))
        for one in made_of:
            assert one["lengths"].shape == (2, len(one["numbers"]))
            is_single = len(one["numbers"]) == 1
            assert is_single or one["input_ids"].numel() <= max_tokens
    assert len(made_of) == 1


def test_prompts_are_computed_once() -> None:
    """The tokens of a packed pair are those of its prompt, once, and of its answers."""
    rows = draw_pairs((50, 2, 3), (40, 4, 2))
    batches = PreferenceBatches(PackedBatches(0, UNLIMITED), UNLIMITED)
    pairs = Pairs(rows, Sharing(batches, "", ALONE))
    (made_of,) = batches([pairs[0], pairs[1]])["micro_batches"]
    # The last token of each answer predicts nothing.
    assert made_of["input_ids"].numel() == 50 + 1 + 2 + 40 + 3 + 1
