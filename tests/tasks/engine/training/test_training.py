"""Step 4: the adapter moves, the base does not, and an interruption changes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_steps import (
    gpt2_base,
    injected,
    prepared,
    qwen2_base,
    random_base,
    rebuilt,
    train_here,
    trained,
    training,
)
from transformers import MambaConfig

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import adapter_state
from tasks.engine.training.callbacks import TrainingProgress
from tasks.engine.training.checkpoints import Checkpoints
from tasks.errors import UserError, VerificationError
from tasks.records import LossPoint, TrainedRecord, TrainingPlan

DROPOUT = LoraSettings(r=4, lora_dropout=0.3)
WORSENING = training(max_steps=6, eval_steps=1, learning_rate=1.0, lr_scheduler_type="constant")


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


def kill_at(step: int) -> Callable[[TrainingProgress], None]:
    """Return a listener that ends the training once a step is done."""

    def on_progress(now: TrainingProgress) -> None:
        if now.step == step and not now.metrics:
            raise Killed

    return on_progress


def curve(record: TrainedRecord) -> list[tuple[int, float]]:
    """Return the training losses by step."""
    return [(p.step, p.train_loss) for p in record.loss_curve if p.train_loss is not None]


def test_the_adapter_moves_and_the_base_does_not(tiny_base: Path, tmp_path: Path) -> None:
    """All base weights are bit-identical after training, and the adapter's are others."""
    model, record = injected(tiny_base, tmp_path)
    before = {name: w.clone() for name, w in adapter_state.base_weights(model)}
    result = train_here(model, record, tmp_path, training(max_steps=12))

    after = dict(adapter_state.base_weights(model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.adapter_change > 0
    assert curve(result)[-1][1] < curve(result)[0][1]


def test_the_record_says_what_was_saved(tiny_base: Path, tmp_path: Path) -> None:
    """The recorded file holds the live adapter, and the change is the norm of the difference."""
    model, result = trained(tiny_base, tmp_path)
    initial = adapter_state.load_weights(result.injected.initial_weights.path)
    final = adapter_state.load_weights(result.weights.path)

    assert adapter_state.weight_change(final, adapter_state.read_adapter(model, "default")) == 0
    squares = sum(((final[key] - initial[key]) ** 2).sum().item() for key in final)
    assert result.adapter_change == pytest.approx(squares**0.5)


WAYS: dict[str, dict[str, object]] = {
    "padded": {"batching": "padded"},
    "packed": {"batching": "packed"},
    "packed in micro-batches": {"batching": "packed", "batch_tokens": 12},
    "padded in micro-batches": {"batching": "padded", "batch_tokens": 12},
    "shared prefix": {"batching": "shared-prefix"},
    "accumulated, logged seldom": {"gradient_accumulation_steps": 2, "logging_steps": 3},
    "evaluated every third step": {"eval_steps": 3, "save_total_limit": 1},
    "the last weights, stopped within an epoch": {"load_best_model_at_end": False, "max_steps": 7},
    "stopped early": {
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "eval_steps": 1,
        "early_stopping_patience": 1,
    },
}
SOON = ("packed in micro-batches", "shared prefix", "accumulated, logged seldom", "stopped early")
SOON_OR_SLOW = [
    pytest.param(way, id=name, marks=() if name in SOON else pytest.mark.slow)
    for name, way in WAYS.items()
]
"""All ways; those of which another one shows nearly the same are slow tests."""


@pytest.mark.parametrize("way", SOON_OR_SLOW)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(
    tiny_base: Path, tmp_path: Path, way: dict[str, object]
) -> None:
    """Killed at every step in turn, a run ends with the same bits and the same curve."""
    settings = training(
        **{"max_steps": 6, "eval_steps": None, "batch_size": 2, "checkpoint_minutes": 0} | way
    )
    model, record = injected(tiny_base, tmp_path, DROPOUT)
    whole = train_here(model, record, tmp_path / "whole", settings)
    for step in range(1, whole.num_steps + 1):
        with pytest.raises(Killed):
            train_here(rebuilt(record), record, tmp_path / "cut", settings, kill_at(step))
    resumed = train_here(rebuilt(record), record, tmp_path / "cut", settings)
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.loss_curve == whole.loss_curve
    assert resumed.best_step == whole.best_step


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_finished_run_is_not_trained_again(
    tiny_base: Path, tmp_path: Path, way: dict[str, object]
) -> None:
    """A retry after the last checkpoint takes no step and gives the same result."""
    settings = training(**{"max_steps": 9, "eval_steps": None} | way)
    model, record = injected(tiny_base, tmp_path, DROPOUT)
    first = train_here(model, record, tmp_path, settings)
    assert (first.num_steps < (settings.max_steps or 0)) == ("early_stopping_patience" in way)
    steps: list[TrainingProgress] = []
    again = train_here(rebuilt(record), record, tmp_path, settings, steps.append)

    assert [now for now in steps if not now.metrics] == []
    assert again.weights.sha256 == first.weights.sha256
    assert (again.loss_curve, again.best_step) == (first.loss_curve, first.best_step)


@pytest.mark.parametrize("spoil", ["complete.json", "optimizer.pt", "trainer_state.json"])
def test_a_half_written_checkpoint_is_passed_over(
    tiny_base: Path, tmp_path: Path, spoil: str
) -> None:
    """A checkpoint whose manifest or another file is not whole counts as absent."""
    model, record = injected(tiny_base, tmp_path, DROPOUT)
    whole = train_here(model, record, tmp_path / "whole")
    folder = tmp_path / "cut" / "checkpoints"
    with pytest.raises(Killed):
        train_here(rebuilt(record), record, tmp_path / "cut", on_progress=kill_at(3))
    half = shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    content = (half / spoil).read_bytes()
    (half / spoil).write_bytes(content[: len(content) // 2])

    assert Checkpoints(folder).newest() == folder / "checkpoint-2"
    assert not half.exists()
    resumed = train_here(rebuilt(record), record, tmp_path / "cut")
    assert resumed.weights.sha256 == whole.weights.sha256


def test_the_choices_of_the_first_try_hold(tiny_base: Path, tmp_path: Path) -> None:
    """What an earlier attempt chose by itself is used again, whatever would be chosen now."""
    model, record = injected(tiny_base, tmp_path, DROPOUT)
    assert train_here(model, record, tmp_path).batching != "padded"
    file = tmp_path / "checkpoints" / "plan.json"
    plan = TrainingPlan.model_validate_json(file.read_bytes())
    file.write_text(plan.model_copy(update={"batching": "padded"}).model_dump_json())
    assert train_here(rebuilt(record), record, tmp_path).batching == "padded"


def test_checkpoints_of_another_training_are_not_gone_on_with(
    tiny_base: Path, tmp_path: Path
) -> None:
    """With another setting in the same folder, the training starts from its first step."""
    model, record = injected(tiny_base, tmp_path, DROPOUT)
    train_here(model, record, tmp_path)
    other = training(learning_rate=0.01)
    steps: list[TrainingProgress] = []
    train_here(rebuilt(record), record, tmp_path, other, steps.append)
    assert steps[0].step == 1


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_old_checkpoints_are_removed_but_the_best_and_the_last(
    tiny_base: Path, tmp_path: Path, keep: int
) -> None:
    """No more checkpoints stay than asked for, or than the best and the last one are."""
    model, record = injected(tiny_base, tmp_path)
    settings = WORSENING.model_copy(update={"save_total_limit": keep})
    result = train_here(model, record, tmp_path, settings)
    left = {path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")}
    assert {f"checkpoint-{result.best_step}", "checkpoint-6"} <= left
    assert len(left) == max(2, keep)


def test_the_best_checkpoint_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    """With `load_best_model_at_end` the run ends with the weights of the lowest held-out loss."""
    model, record = injected(tiny_base, tmp_path)
    result = train_here(model, record, tmp_path, WORSENING)
    losses = {p.step: p.eval_loss for p in result.loss_curve if p.eval_loss is not None}

    assert result.best_step == min(losses, key=lambda step: losses[step] or 0) < 6
    assert result.eval_loss == min(loss for loss in losses.values() if loss is not None)
    best = tmp_path / f"checkpoints/checkpoint-{result.best_step}" / adapter_state.WEIGHTS_FILE
    assert best.read_bytes() == result.weights.path.read_bytes()
    live = adapter_state.read_adapter(model, "default")
    assert adapter_state.weight_change(adapter_state.load_weights(best), live) == 0


def test_untrained_weights_are_never_the_best(tiny_base: Path, tmp_path: Path) -> None:
    """A warm-up's first step has the rate 0: its loss is reported, and a trained one is kept."""
    model, record = injected(tiny_base, tmp_path, LoraSettings(r=4, target_modules=["lm_head"]))
    warming = training(eval_steps=1, learning_rate=5.0, warmup_ratio=0.3)
    result = train_here(model, record, tmp_path, warming)
    losses = {p.step: p.eval_loss for p in result.loss_curve if p.eval_loss is not None}

    assert min(losses, key=lambda step: losses[step] or 0) == 1
    assert result.best_step == 2
    assert result.adapter_change > 0
    assert any(f"never fell below {losses[1]:.4f}" in one for one in result.warnings)


def test_the_last_weights_are_kept_on_request(tiny_base: Path, tmp_path: Path) -> None:
    """Without `load_best_model_at_end` the last weights and their held-out loss are kept."""
    model, record = injected(tiny_base, tmp_path)
    last = WORSENING.model_copy(update={"load_best_model_at_end": False})
    result = train_here(model, record, tmp_path, last)

    assert result.best_step is None
    assert result.eval_loss == result.loss_curve[-1].eval_loss
    final = tmp_path / "checkpoints/checkpoint-6" / adapter_state.WEIGHTS_FILE
    assert final.read_bytes() == result.weights.path.read_bytes()


@pytest.mark.parametrize("load_best_model_at_end", [True, False])
def test_early_stopping_stops(
    tiny_base: Path, tmp_path: Path, load_best_model_at_end: object
) -> None:
    """A held-out loss that does not fall any more ends the run before its last step."""
    model, record = injected(tiny_base, tmp_path)
    changes = {
        "early_stopping_patience": 1,
        "max_steps": 40,
        "load_best_model_at_end": load_best_model_at_end,
    }
    result = train_here(model, record, tmp_path, WORSENING.model_copy(update=changes))

    assert result.num_steps < 40
    *_, before, last = [p.eval_loss for p in result.loss_curve if p.eval_loss is not None]
    assert last > before


def test_training_needs_no_held_out_rows(tiny_base: Path, tmp_path: Path) -> None:
    """Without held-out rows there is no held-out loss, and the last weights are the result."""
    from tasks.engine.training.training import train

    model, record = injected(tiny_base, tmp_path)
    result = train(
        model,
        record,
        prepared(record.lora.base, tmp_path, num_eval_rows=0),
        settings=training(early_stopping_patience=1),
        folder=tmp_path / "checkpoints",
        on_progress=lambda _: None,
    )
    assert (result.eval_loss, result.best_step, result.num_steps) == (None, None, 4)


def test_a_loss_that_is_no_number_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    """A diverged run fails at once and names the learning rate."""
    model, record = injected(tiny_base, tmp_path, LoraSettings(r=4, target_modules=["lm_head"]))
    diverging = training(lr_scheduler_type="constant").model_copy(update={"learning_rate": 1e38})
    with pytest.raises(VerificationError, match=r"loss is (nan|inf).*lower training.learning_rate"):
        train_here(model, record, tmp_path, diverging)


def test_an_adapter_that_did_not_move_is_found_out(tiny_base: Path, tmp_path: Path) -> None:
    """A learning rate too small for float32 changes nothing, which is an error."""
    model, record = injected(tiny_base, tmp_path)
    with pytest.raises(VerificationError, match="changed no adapter weight"):
        train_here(model, record, tmp_path, training(learning_rate=1e-60))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_a_base_that_moved_is_found_out(tiny_base: Path, tmp_path: Path, name: str) -> None:
    """A base weight that changes by the least bit during training is an error."""
    model, record = injected(tiny_base, tmp_path)

    def disturb(_: TrainingProgress) -> None:
        first = model.get_parameter(name).data.view(-1)
        first[0] = torch.nextafter(first[0], torch.tensor(9.0))

    with pytest.raises(VerificationError, match="changed weights of the base"):
        train_here(model, record, tmp_path, on_progress=disturb)


def test_accumulation_is_a_larger_batch(tiny_base: Path, tmp_path: Path) -> None:
    """Two batches of two rows make the same step as one batch of four, rows of any length."""
    logged = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        model, record = injected(tiny_base, tmp_path)
        shape = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        metrics: list[dict[str, float]] = []
        train_here(
            model,
            record,
            tmp_path / str(batch_size),
            training(max_steps=3, learning_rate=1e-3, **shape),
            lambda now, seen=metrics: seen.append(now.metrics),  # type: ignore[misc]
        )
        logged.append([(m["loss"], m["grad_norm"]) for m in metrics if "grad_norm" in m])

    assert len(logged[0]) == 3
    for whole, parts in zip(*logged, strict=True):
        assert parts == pytest.approx(whole, rel=1e-5)


def test_held_out_loss_is_the_mean_over_tokens(tiny_base: Path, tmp_path: Path) -> None:
    """Each held-out token counts the same, however the rows are batched."""
    model, record = injected(tiny_base, tmp_path)
    result = train_here(
        model, record, tmp_path, training(load_best_model_at_end=False, batch_size=1)
    )
    held_out = prepared(record.lora.base, tmp_path).eval
    assert held_out is not None
    loss, tokens = 0.0, 0
    for row in held_out.rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            mean = model.eval()(input_ids=ids, labels=labels).loss.item()
        loss, tokens = loss + mean * row.num_trained_tokens, tokens + row.num_trained_tokens

    assert len({row.num_trained_tokens for row in held_out.rows}) > 1
    assert result.eval_loss == pytest.approx(loss / tokens, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_base_trains_whole_modules(
    tiny_base: Path, tmp_path: Path, dtype: str
) -> None:
    """A float32 copy of the output layer trains on a base in half precision."""
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": dtype})
    lora = LoraSettings(r=4, modules_to_save=["lm_head"])
    _, result = trained(tiny_base, tmp_path, lora, half)

    weights = adapter_state.load_weights(result.weights.path)
    assert "lm_head.weight" in weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize("save", [gpt2_base, qwen2_base])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_other_architectures_train(tmp_path: Path, save: Callable[[Path], Path], bias: str) -> None:
    """GPT-2 and Qwen2 train, with or without their biases."""
    lora = LoraSettings.model_validate({"r": 4, "bias": bias})
    _, result = trained(save(tmp_path / "base"), tmp_path, lora)

    weights = adapter_state.load_weights(result.weights.path)
    assert any(key.endswith(".bias") for key in weights) == (bias == "all")
    assert isinstance(result.loss_curve[0], LossPoint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the optimiser works")
def test_an_optimiser_that_needs_a_gpu_is_refused_without_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    """The paged 8-bit optimiser is the user's mistake on a CPU, before anything is written."""
    model, record = injected(tiny_base, tmp_path)
    with pytest.raises(UserError, match="needs a GPU; use adamw"):
        train_here(model, record, tmp_path, training(optim="paged_adamw_8bit"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_single_step_trains(tiny_base: Path, tmp_path: Path) -> None:
    """A training of one step has no warm-up, whose first rate is zero."""
    model, record = injected(tiny_base, tmp_path)
    result = train_here(model, record, tmp_path, training(max_steps=1, warmup_ratio=0.1))
    assert result.adapter_change > 0


def test_layers_that_nothing_computes_with_are_told(tmp_path: Path) -> None:
    """Mamba reads the weight of `dt_proj` and never calls it: its adapter stays as it began."""
    config = MambaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1
    )
    base = random_base(config, tmp_path / "base")
    model, record = injected(base, tmp_path, LoraSettings(r=2))
    trained = train_here(model, record, tmp_path, training(max_steps=2))
    (told,) = [one for one in trained.warnings if "no gradient reaches them" in one]
    assert told.startswith("training changed nothing in 2 of 6 adapted layers")
    assert told.endswith("them: dt_proj; leave them out by lora.exclude_modules")
