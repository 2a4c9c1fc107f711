"""Judged answers: losses, metrics and gradients are TRL's, however the rows are laid out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_preferences import (
    LAYOUTS,
    SEED,
    UNLIMITED,
    assert_same_measures,
    ours_judged,
    plan_of,
    reference_of,
    settings_of,
    trl_arguments,
)
from exact_training import ARCHITECTURES, assert_same, gradients, made
from preference_pairs import draw_pairs
from tiny_models import tiny_tokenizer

from tasks.config import LearningObjective
from tasks.engine.batching.batches import PackedBatches
from tasks.engine.batching.preference_batches import PreferenceBatches
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.engine.kernels.row_attention import attending_by_row
from tasks.engine.training.group import ALONE
from tasks.engine.training.items import Sharing
from tasks.engine.training.judged import HeldOutJudged, JudgedRows, mismatches

ROWS = draw_pairs((12, 3, 5), (4, 6, 2), (9, 1, 1), (2, 4, 9), (7, 8, 3))[::2]
JUDGED = JudgedRows(
    [TokenizedRow(one.input_ids, one.labels, number) for number, one in enumerate(ROWS)],
    np.array([True, False, True, False, False]),
    most_tokens=100,
)
LOSSES: dict[str, dict[str, Any]] = {
    "kto": {"beta": 0.5},
    "weighted": {"desirable_weight": 1.5, "undesirable_weight": 0.7},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired"},
}


def answer_of(row: TokenizedRow) -> list[int]:
    """Return the tokens of a row's answer."""
    return [label for label in row.labels if label != IGNORED]


def for_trl(judged: JudgedRows, *, has_others: bool = True) -> list[dict[str, Any]]:
    """Return rows as TRL's collator takes them, with the mismatched answers that we draw."""
    others = mismatches(range(len(judged.rows)), SEED)
    return [
        {
            "prompt_ids": row.input_ids[: len(row.input_ids) - len(answer_of(row))],
            "completion_ids": answer_of(row),
            **({"KL_completion_ids": answer_of(judged.rows[others[at]])} if has_others else {}),
            "label": bool(judged.are_desirable[at]),
        }
        for at, row in enumerate(judged.rows)
    ]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_losses_metrics_and_gradients_are_those_of_trl(name: str, tmp_path: Path) -> None:
    """On the same rows and mismatches, each loss, what is logged of it and each gradient."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**ARCHITECTURES[name]))
    theirs = made(name)
    example = {"prompt": "a", "completion": "b"}
    for settings in LOSSES.values():
        trainer = trl.KTOTrainer(
            model=theirs,
            ref_model=base,
            args=trl.KTOConfig(**trl_arguments(tmp_path, **settings)),
            train_dataset=Dataset.from_list([example | {"label": one} for one in (True, False)]),
            processing_class=tiny_tokenizer(chat_template=False),
        )
        rows = for_trl(JUDGED, has_others=trainer.calculate_KL)
        theirs.train()
        expected = trainer.compute_loss(theirs, trainer.data_collator(rows))
        expected.backward()
        logged = {key: values[0] for key, values in trainer._metrics["train"].items()}

        loss, found, measured = ours_judged(made(name), JUDGED, settings)
        assert_same((loss, found), (expected.item(), gradients(theirs)))
        assert (measured["kl"] > 0.1) == trainer.calculate_KL
        assert_same_measures(measured, logged)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_rows_changes_nothing(layout: str) -> None:
    """Packed, in micro-batches, in several batches, in chunks: as padded in one batch."""
    settings = LOSSES["kto"]
    expected = ours_judged(made("llama"), JUDGED, settings)
    for max_tokens, num_batches, chunks in ((UNLIMITED, 2, True), (30, 1, False), (1, 3, True)):
        found = ours_judged(
            made("llama"), JUDGED, settings, layout, max_tokens, num_batches, chunks=chunks
        )
        assert_same(found[:2], expected[:2])
        assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [UNLIMITED, 30])
def test_held_out_rows_have_the_loss_of_a_step_of_all_of_them(max_tokens: int) -> None:
    """Whatever their micro-batches: their divergence is one, and known only after the last."""
    model, settings = made("llama"), LOSSES["kto"]
    expected = ours_judged(model, JUDGED, settings)
    task = settings_of(LearningObjective.KTO, settings)
    sharing = Sharing(PreferenceBatches(PackedBatches(0, max_tokens), max_tokens), "", ALONE)
    items = HeldOutJudged(JUDGED, sharing, SEED)
    measured: list[Any] = []
    with attending_by_row(model), torch.no_grad():
        items = items.compared_with(reference_of(model, items))
        for indices in ([0, 1], [2, 3, 4]):
            for one in items.batches([indices])[0]["micro_batches"]:
                _, values = task.loss(model, one, plan_of())
                assert values is not None
                measured += values.tolist()
    found = task.metrics([], measured, [])
    assert found.pop("loss") == pytest.approx(expected[0], rel=1e-5)
    assert found == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


def test_mismatches_are_a_function_of_the_rows_of_a_step() -> None:
    """In any order they are the same; each answer is taken once, and none by its own prompt."""
    step = [7, 3, 12, 0, 5]
    found = mismatches(step, seed=1)
    assert found == mismatches(sorted(step), seed=1)
    assert sorted(found) == sorted(found.values()) == sorted(step)
    assert all(prompt != answer for prompt, answer in found.items())
    assert found != mismatches(step, seed=2)
    assert mismatches([4], seed=0) == {4: 4}


def test_a_mismatched_row_is_a_prompt_with_another_answer() -> None:
    """Its labels are on the answer; it is truncated as all rows are, but never to nothing."""
    for most_tokens, length in ((100, 4 + 3), (5, 5)):
        judged = JUDGED._replace(most_tokens=most_tokens)
        row = judged.mismatched(1, 0)
        assert len(row.input_ids) == length
        assert row.input_ids == (ROWS[1].input_ids[:4] + ROWS[0].input_ids[12:])[:length]
        assert row.num_trained_tokens == length - 4
