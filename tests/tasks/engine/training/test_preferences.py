"""Step 4 on pairs: one mean over the pairs of a step, and an interruption changes nothing."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import at_question, gpt2_base, injected, prepared, save_here, trained
from preference_pairs import ROWS, data_of, draw_pairs, preferring, train_on_pairs

from tasks import engine
from tasks.config import LoraSettings, TrainingSettings
from tasks.engine.adapters import adapter_state
from tasks.engine.batching.batches import PaddedBatches
from tasks.engine.batching.preference_batches import PreferenceBatches
from tasks.engine.training.callbacks import TrainingProgress
from tasks.engine.training.group import ALONE, Group
from tasks.engine.training.items import Sharing
from tasks.engine.training.measures import Measures
from tasks.engine.training.pairs import Pairs
from tasks.errors import StoppedError, UserError
from tasks.records import TrainedRecord

DROPOUT = LoraSettings(r=4, lora_dropout=0.3)
# With so light undesirable answers, all become more likely, so that the divergence is above 0.
KTO = {"objective": "kto", "preferences": {"beta": 1, "undesirable_weight": 0.01}}
MPO = {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]}


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


class OneOfTwo(Group):
    """A process of two, which asks the other one nothing."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def logged(folder: Path) -> list[dict[str, float]]:
    """Return what the last checkpoint in the folder has of the logs."""
    checkpoints = sorted(
        folder.glob("checkpoints/checkpoint-*"), key=lambda one: one.stat().st_mtime
    )
    state = json.loads((checkpoints[-1] / "trainer_state.json").read_text())
    history: list[dict[str, float]] = state["log_history"]
    return [{k: v for k, v in one.items() if k != "epoch"} for one in history]


def kill_at(step: int) -> Callable[[TrainingProgress], None]:
    """Return a listener that ends the training once a step is done."""

    def on_progress(now: TrainingProgress) -> None:
        if now.step == step and not now.metrics:
            raise Killed

    return on_progress


def losses(record: TrainedRecord) -> list[float | None]:
    """Return all losses in the order of their steps."""
    return [p.train_loss or p.eval_loss for p in record.loss_curve]


def test_the_chosen_answers_become_more_likely_than_the_rejected(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Nothing is preferred at first; then rewards part, in training and on held-out pairs."""
    record = train_on_pairs(tiny_base, tmp_path, preferring(max_steps=20, logging_steps=1))
    history = [one for one in logged(tmp_path) if "loss" in one]
    assert history[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert history[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["loss"] < 0.5
    assert history[-1]["rewards/accuracies"] == 1
    assert history[-1]["rewards/margins"] > 0.5
    assert record.eval_metrics["rewards/accuracies"] > 0
    lengths = [record.eval_metrics[f"lengths/{one}"] for one in ("chosen", "rejected")]
    assert 0 < lengths[0] < lengths[1]
    assert record.preferences is not None
    assert record.preferences.num_reference_pairs == len(ROWS)


WAYS: dict[str, dict[str, Any]] = {
    "sigmoid, logged seldom": {"gradient_accumulation_steps": 2, "logging_steps": 3},
    "several losses, in micro-batches": {"preferences": MPO, "batch_tokens": 20},
    "padded": {"batching": "padded", "batch_tokens": 30},
    "judged": {**KTO, "gradient_accumulation_steps": 2, "batch_tokens": 20},
    "without a reference": {"objective": "orpo", "batch_tokens": 30},
}
SLOW = ("padded", "without a reference")


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, way in WAYS.items()
    ],
)
def test_a_run_on_pairs_that_is_killed_ends_as_if_it_had_not_been(
    tiny_base: Path, tmp_path: Path, way: dict[str, Any]
) -> None:
    """Killed at each step, it ends with the same bits, curve and measures, and one reference."""
    settings = preferring(**{"max_steps": 5, "eval_steps": None, "checkpoint_minutes": 0} | way)
    whole = train_on_pairs(tiny_base, tmp_path / "whole", settings, DROPOUT)
    reference = tmp_path / "cut" / "checkpoints" / "reference.safetensors"
    written = set()
    for step in range(1, whole.num_steps + 1):
        with pytest.raises(Killed):
            train_on_pairs(tiny_base, tmp_path / "cut", settings, DROPOUT, kill_at(step))
        written.add(reference.stat().st_mtime_ns if reference.exists() else 0)
    resumed = train_on_pairs(tiny_base, tmp_path / "cut", settings, DROPOUT)
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.loss_curve == whole.loss_curve
    assert resumed.eval_metrics == whole.eval_metrics
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert len(written) == 1


@pytest.mark.parametrize(
    "learned",
    [{"objective": "dpo", "preferences": MPO}, KTO],
    ids=lambda learned: learned["objective"],
)
def test_the_loss_is_a_mean_over_the_items_of_a_step(
    tiny_base: Path, tmp_path: Path, learned: dict[str, Any]
) -> None:
    """Neither the layout, nor micro-batches, nor accumulation change losses or what is measured.

    The mismatched rows of judged answers are those of a step, too.
    """
    ways: dict[str, dict[str, object]] = {
        "at once": {"batching": "padded", "batch_size": 6},
        "in micro-batches": {"batch_tokens": 20, "batch_size": 6},
        "accumulated": {"batch_size": 2, "gradient_accumulation_steps": 3},
        "packed": {"batching": "packed", "batch_size": 6},
    }
    found = {
        name: train_on_pairs(
            tiny_base,
            tmp_path / name,
            preferring(learning_rate=1e-3, **learned, **way),
            LoraSettings(r=4, target_modules="peft-default"),  # KTO's divergence is above 0 then
        )
        for name, way in ways.items()
    }
    expected = found.pop("at once")
    measured = {name: logged(tmp_path / name) for name in ways}
    first, last = measured["at once"][0], measured["at once"][-1]  # at first, none is preferred
    if learned["objective"] == "dpo":
        of_tokens = -first["logps/chosen"] / first["lengths/chosen"]
        assert first["loss"] == pytest.approx(0.8 * math.log(2) + of_tokens, rel=1e-4)
    else:
        assert first["loss"] == pytest.approx((0.5 + 0.01 * 0.5) / 2, rel=1e-4)
        assert last["eval_kl"] > 0.005
        assert any(one.get("kl", 0) > 0.05 for one in measured["at once"])
    for name, record in found.items():
        assert losses(record) == pytest.approx(losses(expected), rel=1e-4)
        for ours, theirs in zip(measured[name], measured["at once"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_each_pair_of_a_step_is_computed_in_one_process() -> None:
    """Two processes share the pairs of each batch of a step, also a single one."""
    rows = draw_pairs((12, 3, 5), (4, 6, 2), (9, 1, 1), (2, 4, 9), (7, 8, 3))
    collate = PreferenceBatches(PaddedBatches(0, 40), 40)
    for step in ([[0, 3], [4, 1]], [[2]]):
        shares = [
            Pairs(rows, Sharing(collate, "padded", OneOfTwo(rank))).batches(step) for rank in (0, 1)
        ]
        found = [
            number
            for batches in shares
            for batch in batches
            for one in batch["micro_batches"]
            for number in one["numbers"].tolist()
        ]
        assert sorted(found) == sorted(pair for batch in step for pair in batch)
        assert [len(batches) for batches in shares] == [len(step)] * 2


def test_a_run_on_pairs_stops_at_any_moment_when_asked(tiny_base: Path, tmp_path: Path) -> None:
    """Stopped within the reference, after any step and in any evaluation, it loses no step."""
    settings = preferring(max_steps=3, batch_size=4)
    whole = train_on_pairs(tiny_base, tmp_path / "whole", settings, DROPOUT)
    cut = tmp_path / "cut"
    seen: list[TrainingProgress] = []
    for number in range(1, 20):
        stop = at_question(number)
        with suppress(StoppedError):
            last = train_on_pairs(tiny_base, cut, settings, DROPOUT, seen.append, stop)
            break
        if number == 1:
            assert not (cut / "checkpoints" / "reference.safetensors").exists()
    assert number > 2
    assert last.weights.sha256 == whole.weights.sha256
    assert last.loss_curve == whole.loss_curve
    assert [now.step for now in seen if not now.metrics] == [1, 2, 3]
    assert logged(cut) == logged(tmp_path / "whole")


def test_the_reference_of_an_adapter_that_is_continued_is_that_adapter(
    tiny_base: Path, tmp_path: Path
) -> None:
    """What was trained on answers begins to learn from pairs without any reward."""
    model, answers = trained(tiny_base, tmp_path / "answers")
    source = save_here(model, answers, tmp_path / "answers").folder
    settings = preferring(logging_steps=1, batch_size=len(ROWS))
    train_on_pairs(tiny_base, tmp_path / "fresh", settings)
    train_on_pairs(
        tiny_base,
        tmp_path / "continued",
        settings,
        LoraSettings.model_validate({"from": str(source)}),
    )
    fresh, first = (logged(tmp_path / name)[0] for name in ("fresh", "continued"))
    assert abs(first["logps/chosen"] - fresh["logps/chosen"]) > 0.1
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    for answer in ("chosen", "rejected"):
        assert first[f"rewards/{answer}"] == pytest.approx(0, abs=1e-5)


def test_the_reference_is_the_base_also_where_the_start_changed_its_weights(
    tiny_base: Path, tmp_path: Path
) -> None:
    """With PiSSA, the base without the adapter is another model; the reference is both together."""
    plain = preferring(max_steps=1)
    for name, lora in (("plain", None), ("pissa", LoraSettings(r=4, init_lora_weights="pissa"))):
        train_on_pairs(tiny_base, tmp_path / name, plain, lora)
    found = [
        adapter_state.load_weights(tmp_path / name / "checkpoints" / "reference.safetensors")
        for name in ("plain", "pissa")
    ]
    assert torch.isnan(found[0]["train"]).any()  # one step sees two pairs only
    for split in ("train", "eval"):
        assert torch.allclose(found[0][split], found[1][split], rtol=1e-4, equal_nan=True)


def test_the_base_s_own_dropout_is_off(tmp_path: Path) -> None:
    """GPT-2 has dropout layers; without them, the untrained model is its own reference."""
    base = gpt2_base(tmp_path / "gpt2")
    train_on_pairs(base, tmp_path / "run", preferring(max_steps=2, logging_steps=1))
    first = logged(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)


def test_a_reference_that_changed_on_disk_is_computed_again(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A damaged file is never used, and the result is that of a run without damage."""
    settings = preferring(checkpoint_minutes=0)
    whole = train_on_pairs(tiny_base, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        train_on_pairs(tiny_base, tmp_path / "cut", settings, on_progress=kill_at(2))
    file = tmp_path / "cut" / "checkpoints" / "reference.safetensors"
    weights = adapter_state.load_weights(file)
    adapter_state.save_weights({name: one + 1 for name, one in weights.items()}, file)
    resumed = train_on_pairs(tiny_base, tmp_path / "cut", settings)
    assert resumed.weights.sha256 == whole.weights.sha256


def test_only_pairs_that_are_drawn_need_a_reference(tiny_base: Path, tmp_path: Path) -> None:
    """Of a training that ends within its first epoch, the others' is not computed."""
    record = train_on_pairs(tiny_base, tmp_path, preferring(max_steps=2, batch_size=1))
    assert record.preferences is not None
    num_held_out = 4
    assert record.preferences.num_reference_pairs == 2 + num_held_out


def test_data_for_another_objective_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Tokens of single answers are never taken for pairs, nor pairs for answers."""
    model, record = injected(tiny_base, tmp_path)
    answers = prepared(record.lora.base, tmp_path).record
    pairs = data_of(record.lora.base, tmp_path / "pairs").record
    for data, settings in ((answers, preferring()), (pairs, TrainingSettings())):
        with pytest.raises(UserError, match=r"the data was prepared for training\.objective"):
            engine.train_adapter(model, record, data, settings, tmp_path / "checkpoints")


def test_measures_are_means_that_a_checkpoint_keeps() -> None:
    """The mean of all items since the last log, also of those before an interruption."""
    one, other = Measures(("a", "b")), Measures(("a", "b"))
    one.add(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    one.end_step(ALONE)
    other.restore(*one.kept)
    other.add(torch.tensor([[[8.0, 0.0]]]))
    other.end_step(ALONE)
    assert other.take() == (4.0, 2.0)
    assert other.take() == ()
    assert Measures(()).take() == ()
