"""The workbench: a model is handed over once, or rebuilt bit for bit from its record."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_steps import injected, loaded, logits, trained
from tiny_models import tiny_llama

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine import workbench
from tasks.engine.adapters import adapter_state
from tasks.engine.adapters.injection import trainable
from tasks.errors import AdapterflowError, UserError

VARIANTS = [
    {},
    {"init_lora_weights": "pissa", "use_rslora": True},
    {"use_dora": True, "modules_to_save": ["lm_head"]},
]


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    """Leave no model behind."""
    workbench.clear()
    yield
    workbench.clear()


def settings(given: dict[str, object]) -> LoraSettings:
    """Return LoRA settings."""
    return LoraSettings.model_validate({"r": 4} | given)


def test_a_model_is_given_once(tiny_base: Path) -> None:
    """Taking a model makes it the taker's; the next one gets another."""
    model, record = loaded(tiny_base)
    workbench.put(record, model)

    assert workbench.take(record) is model
    assert workbench.take(record) is not model


def test_there_is_room_for_one(tiny_base: Path, tmp_path: Path) -> None:
    """A model that is put down replaces the one before, and clearing leaves none."""
    base, base_record = loaded(tiny_base)
    workbench.put(base_record, base)
    model, record = injected(tiny_base, tmp_path)
    workbench.put(record, model)
    assert workbench.take(base_record) is not base

    workbench.put(record, model)
    workbench.clear()
    assert workbench.take(record) is not model


def test_another_state_is_rebuilt(tiny_base: Path, tmp_path: Path) -> None:
    """A trained model is not handed out as the injected one that it was."""
    model, record = trained(tiny_base, tmp_path)
    workbench.put(record, model)
    fresh = workbench.take(record.injected)

    assert fresh is not model
    assert torch.equal(logits(fresh), logits(loaded(tiny_base)[0]))


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_a_rebuilt_model_is_the_live_one(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """Injected or trained, a model from its record has the live one's every bit."""
    live, injected_record = injected(tiny_base, tmp_path / "one", settings(given))
    again = workbench.take(injected_record)
    assert same_weights(live, again)
    assert [n for n, _ in trainable(live)] == [n for n, _ in trainable(again)]

    live, trained_record = trained(tiny_base, tmp_path / "two", settings(given))
    again = workbench.take(trained_record)
    assert same_weights(live, again)
    assert torch.equal(logits(live), logits(again))


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    """Return whether two models have the same parameters, bit for bit and of the same type."""
    ours, theirs = dict(one.named_parameters()), dict(two.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def test_a_second_adapter_is_rebuilt(tiny_base: Path, tmp_path: Path) -> None:
    """A bfloat16 base with a named adapter comes back with float32 adapter weights."""
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "bfloat16"})
    live, record = trained(tiny_base, tmp_path, settings({"adapter_name": "a"}), half)
    again = workbench.take(record)

    assert same_weights(live, again)
    assert {p.dtype for _, p in trainable(again)} == {torch.float32}


@pytest.mark.parametrize("damage", ["gone", "changed"])
@pytest.mark.parametrize("state", ["injected", "trained"])
def test_lost_adapter_weights_are_an_error(
    tiny_base: Path, tmp_path: Path, state: str, damage: str
) -> None:
    """A weights file that is missing or has changed is named; no other weights are taken for it."""
    _, record = trained(tiny_base, tmp_path)
    file = record.weights.path if state == "trained" else record.injected.initial_weights.path
    if damage == "gone":
        file.unlink()
    else:
        weights = adapter_state.load_weights(file)
        adapter_state.save_weights({key: value + 1 for key, value in weights.items()}, file)

    with pytest.raises(UserError, match=f"{file.name} is missing or has changed"):
        workbench.take(record)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_base_is_an_error(tiny_base: Path, tmp_path: Path, damage: str) -> None:
    """A base whose folder is gone, or holds other weights by now, is not rebuilt."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    _, record = loaded(folder)
    shutil.rmtree(folder)
    if damage == "changed":
        tiny_llama(folder, seed=9)

    with pytest.raises(AdapterflowError, match=r"model.safetensors is missing or has changed"):
        workbench.take(record)
