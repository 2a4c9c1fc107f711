"""Step 4 with PEFT's optimizers for LoRA, and with NEFTune, against PEFT and the papers."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import configured, injected, loaded, prepared, train_here, training
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file

from tasks.config import LoraSettings, TrainingSettings
from tasks.engine.batching.batches import PackedBatches, PaddedBatches
from tasks.engine.training import TrainingProgress, check_training_settings, optimizers
from tasks.engine.training.noise import noisy_embeddings
from tasks.errors import UserError
from tasks.records import TrainedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONSTANT: dict[str, Any] = {"lr_scheduler_type": "constant", "warmup_ratio": 0}


def moved(record: TrainedRecord) -> dict[str, torch.Tensor]:
    """Return by how much each weight of the adapter changed."""
    before = load_file(record.injected.initial_weights.path)
    after = load_file(record.weights.path)
    return {name: (after[name] - before[name]).abs() for name in before}


def test_lora_plus_moves_b_faster_than_a(tiny_base: Path, tmp_path: Path) -> None:
    """AdamW's first step moves each weight by its learning rate: A's, or the ratio times that."""
    model, record = injected(tiny_base, tmp_path)
    settings = training(max_steps=1, learning_rate=1e-3, loraplus_lr_ratio=8, **CONSTANT)
    change = moved(train_here(model, record, tmp_path, settings))
    of_b = torch.cat([one.flatten() for name, one in change.items() if "lora_B" in name])
    assert of_b.median() == pytest.approx(8e-3, rel=1e-2)
    # B begins at zero, so the gradient of A, and with it A's change, is zero in the first step.
    model, record = injected(tiny_base, tmp_path / "two")
    settings = training(max_steps=2, learning_rate=1e-3, loraplus_lr_ratio=8, **CONSTANT)
    change = moved(train_here(model, record, tmp_path / "two", settings))
    of_a = torch.cat([one.flatten() for name, one in change.items() if "lora_A" in name])
    assert 0 < of_a.median() <= 1.1e-3


def test_a_ratio_of_one_is_plain_adamw(tiny_base: Path, tmp_path: Path) -> None:
    """The same steps give the same losses."""
    losses = []
    for name, ratio in (("plain", None), ("ratio", 1)):
        model, record = injected(tiny_base, tmp_path / name)
        settings = training(loraplus_lr_ratio=ratio)
        trained = train_here(model, record, tmp_path / name, settings)
        losses.append([point.train_loss for point in trained.loss_curve if point.train_loss])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_lora_fa_trains_b_alone(tiny_base: Path, tmp_path: Path) -> None:
    """A keeps its initial bits, and the loss falls."""
    model, record = injected(tiny_base, tmp_path)
    trained = train_here(model, record, tmp_path, training(optim="lora_fa", max_steps=12))
    change = moved(trained)
    assert all(not one.any() for name, one in change.items() if "lora_A" in name)
    assert all(one.any() for name, one in change.items() if "lora_B" in name)
    losses = [point.train_loss for point in trained.loss_curve if point.train_loss]
    assert losses[-1] < losses[0]


def test_lora_fa_steps_as_peft_s_own(tiny_base: Path, tmp_path: Path) -> None:
    """The same gradients move B as in a PeftModel, whatever the adapter is called."""
    settings = LoraSettings(
        r=4, adapter_name="lora", modules_to_save=["lm_head"], target_modules=["q_proj", "v_proj"]
    )
    model, record = injected(tiny_base, tmp_path, settings)
    # A second trainer, as after running out of memory, finds A frozen already.
    for _ in range(2):
        ours = optimizers.lora_optimizer(model, training(optim="lora_fa"), (torch.optim.AdamW, {}))
    base = loaded(tiny_base)[0]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    peft = get_peft_model(base, config)
    theirs = create_lorafa_optimizer(peft, r=4, lora_alpha=8, lr=0.02)
    pairs = [(name.replace(".lora.", ".default."), p) for name, p in model.named_parameters()]
    mirrored = dict(peft.named_parameters())
    known = [(p, mirrored[f"base_model.model.{name}"]) for name, p in pairs if ".lora_" in name]
    assert len(known) == 2 * 2 * model.config.num_hidden_layers
    with torch.no_grad():
        for mine, other in known:
            other.copy_(mine)
    for seed in range(3):
        torch.manual_seed(seed)
        for mine, other in known:
            mine.grad = torch.randn_like(mine) if mine.requires_grad else None
            other.grad = None if mine.grad is None else mine.grad.clone()
        assert ours is not None
        ours.step()
        theirs.step()
    for mine, other in known:
        assert torch.equal(mine, other)
    assert record.lora.peft_config.modules_to_save == ("lm_head",)


@pytest.mark.parametrize(
    "settings",
    [
        training(optim="lora_fa", eval_steps=1),
        training(loraplus_lr_ratio=4, eval_steps=1),
        training(neftune_noise_alpha=5, eval_steps=1),
    ],
    ids=["lora_fa", "lora+", "neftune"],
)
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    tiny_base: Path, tmp_path: Path, settings: TrainingSettings
) -> None:
    """Its state is in the checkpoint: of the optimizer, and of what the noise is drawn from."""

    class Killed(Exception):  # noqa: N818 - not an error of ours
        pass

    def kill(now: TrainingProgress) -> None:
        if now.step == 3 and not now.metrics:
            raise Killed

    model, record = injected(tiny_base, tmp_path / "whole")
    whole = train_here(model, record, tmp_path / "whole", settings)
    model, record = injected(tiny_base, tmp_path / "killed")
    with pytest.raises(Killed):
        train_here(model, record, tmp_path / "killed", settings, kill)
    model, record = injected(tiny_base, tmp_path / "killed")
    resumed = train_here(model, record, tmp_path / "killed", settings)
    assert resumed.weights.sha256 == whole.weights.sha256


def test_noise_is_as_large_as_the_paper_says(tiny_base: Path) -> None:
    """Up to alpha / sqrt(tokens of the row x embedding size), packed as well as padded."""
    model, _ = loaded(tiny_base)
    rows = [
        {"input_ids": list(range(1, n + 1)), "labels": [-100, *range(2, n + 1)]} for n in (5, 17)
    ]
    for batches in (PaddedBatches(0, 100), PackedBatches(0, 100, by_conversation=False)):
        [micro_batch] = batches(rows)["micro_batches"]  # type: ignore[arg-type]
        noise = _noise(model, micro_batch)
        positions = micro_batch["position_ids"]
        lengths = _lengths(micro_batch)
        for length in (4, 16):  # of the last token nothing is predicted
            here = noise[lengths == length]
            assert len(here) == length, positions
            bound = 5 / (length * noise.shape[-1]) ** 0.5
            assert 0.8 * bound < here.abs().max() <= bound * 1.0001


def _lengths(micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the tokens of each position's row, and 0 on padding."""
    mask, positions = micro_batch["attention_mask"], micro_batch["position_ids"]
    if mask.shape == positions.shape:
        return mask.sum(1, keepdim=True) * mask
    starts = [*(positions[0] == 0).nonzero().flatten().tolist(), positions.shape[1]]
    sizes = [end - start for start, end in pairwise(starts)]
    return torch.tensor([[size for size in sizes for _ in range(size)]])


def _noise(model: "PreTrainedModel", micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
    embeddings, ids = model.get_input_embeddings(), micro_batch["input_ids"]
    with noisy_embeddings(model, micro_batch, 5.0):
        noisy = embeddings(ids)
    plain: torch.Tensor = embeddings(ids)
    noise: torch.Tensor = (noisy - plain).detach()
    return noise


def test_noise_is_for_training_alone(tiny_base: Path, tmp_path: Path) -> None:
    """Rows share no prefix, and the held-out loss of an untrained adapter is that without noise."""
    losses = {}
    for alpha in (None, 50):
        model, record = injected(tiny_base, tmp_path / str(alpha))
        settings = training(max_steps=1, learning_rate=1e-9, neftune_noise_alpha=alpha)
        trained = train_here(model, record, tmp_path / str(alpha), settings)
        losses[alpha] = trained.eval_loss
        assert trained.batching in {"packed", "padded"} or alpha is None
        assert trained.loss_curve[0].train_loss
    assert losses[50] == pytest.approx(losses[None], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "lora", "words"),
    [
        ({"optim": "lora_fa", "loraplus_lr_ratio": 2}, {}, "set one of them"),
        ({"optim": "lora_fa"}, {"use_dora": True}, "lora.use_dora"),
        ({"optim": "lora_fa"}, {"method": "ia3"}, "lora.method ia3 does not have"),
        ({"loraplus_lr_ratio": 2}, {"method": "ia3"}, "lora.method ia3 does not have"),
        ({"neftune_noise_alpha": 5, "batching": "shared-prefix"}, {}, "can't share a prefix"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tiny_base: Path, settings: dict[str, Any], lora: dict[str, Any], words: str
) -> None:
    """Before a weight is loaded, and with the settings that would go."""
    _, base = loaded(tiny_base)
    resolved = configured(base, LoraSettings.model_validate(lora))
    with pytest.raises(UserError, match=words):
        check_training_settings(training(**settings), resolved, base)


def test_lora_fa_is_refused_for_parameters(tiny_base: Path, tmp_path: Path) -> None:
    """PEFT would take the A of all experts for that of one layer."""
    _, base = loaded(tiny_base)
    lora = {"target_parameters": ["q_proj.weight"], "target_modules": "v_proj"}
    resolved = configured(base, LoraSettings.model_validate(lora))
    with pytest.raises(UserError, match="target_parameters"):
        check_training_settings(training(optim="lora_fa"), resolved, base)
    assert prepared(base, tmp_path / "rows").train.rows
