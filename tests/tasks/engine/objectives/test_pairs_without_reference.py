"""ORPO and SimPO: losses, metrics and gradients are those of TRL's experimental trainers."""

from pathlib import Path
from typing import Any

import pytest
from exact_preferences import (
    LAYOUTS,
    UNLIMITED,
    assert_same_measures,
    features_of,
    ours,
    trl_arguments,
)
from exact_training import assert_same, gradients, made
from preference_pairs import draw_pairs
from tiny_models import tiny_tokenizer

PAIRS = draw_pairs((12, 3, 5), (4, 6, 2), (9, 1, 1), (2, 4, 9), (7, 8, 3))
# TRL's ORPO also learns the prompts, of which a first token is no part: nothing predicts it.
OF_ONE_TOKEN = draw_pairs((1, 3, 5), (1, 6, 2), (1, 1, 1), (1, 4, 9), (1, 8, 3))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "orpo": ("orpo", {}),
    "orpo, beta 0.7": ("orpo", {"beta": 0.7}),
    "simpo": ("simpo", {}),
    "simpo alone": ("simpo", {"beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.0}),
    "simpo, smoothed": ("simpo", {"beta": 2.0, "label_smoothing": 0.1}),
}


def theirs(learned: str, settings: dict[str, Any], folder: Path, name: str) -> Any:  # noqa: ANN401
    """Return TRL's trainer of a model."""
    pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings = trl_arguments(folder, **settings)
    if learned == "orpo":
        trainer, arguments = ORPOTrainer, ORPOConfig(**settings)
    else:
        trainer, arguments = CPOTrainer, CPOConfig(**settings, loss_type="simpo")
    return trainer(
        model=made(name),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(chat_template=False),
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_losses_metrics_and_gradients_are_those_of_trl(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same batch of pairs, each loss, what is logged of it and each gradient are TRL's."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    for learned, settings in CASES.values():
        rows = OF_ONE_TOKEN if learned == "orpo" else PAIRS
        trainer = theirs(learned, settings, tmp_path, name)
        trainer.model.train()
        inputs = trainer.data_collator(features_of(rows))
        loss, logged = trainer.get_batch_loss_metrics(trainer.model, inputs)
        loss.backward()
        found = ours(made(name), rows, settings, learned=learned)
        assert_same(found[:2], (loss.item(), gradients(trainer.model)))
        if settings.get("cpo_alpha") == 0:  # TRL then logs 0
            del found[2]["nll_loss"]
        assert_same_measures(found[2], logged)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("learned", ["orpo", "simpo"])
def test_the_layout_of_the_rows_changes_nothing(learned: str, layout: str) -> None:
    """Packed, with prompts computed once, in micro-batches, in chunks: as padded in one batch."""
    expected = ours(made("llama"), PAIRS, {}, learned=learned)
    for max_tokens, chunks in ((UNLIMITED, True), (30, False), (1, True)):
        found = ours(made("llama"), PAIRS, {}, layout, max_tokens, learned=learned, chunks=chunks)
        assert_same(found[:2], expected[:2])
        assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-5)
