"""Many adapters on one base: each answers exactly, and what does not fit changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import gpt2_base, logits, save_here, trained
from plain_adapters import lora_folder
from safetensors.torch import load_file, save_file
from tiny_models import tiny_adapter, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from tasks.config import BaseModelSettings
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.injection import trainable
from tasks.errors import UserError


def on(base: Path) -> AdapterSet:
    """Load a base in float32."""
    return AdapterSet.on(
        BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})
    )


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save adapters of different kinds and ranks."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": tiny_adapter(tiny_base, root / "plain", r=2),
        "wide": tiny_adapter(tiny_base, root / "wide", seed=2, r=8),
        "head": lora_folder(tiny_base, root / "head", modules_to_save=["lm_head"]),
        "dora": lora_folder(tiny_base, root / "dora", use_dora=True),
        "ends": lora_folder(tiny_base, root / "ends", target_modules=["embed_tokens"]),
    }


@pytest.fixture
def adapters(tiny_base: Path, folders: dict[str, Path]) -> AdapterSet:
    """Load them all."""
    loaded = on(tiny_base)
    for name, folder in folders.items():
        loaded.load(folder, name)
    return loaded


def alone(base: Path, folder: Path) -> torch.Tensor:
    """Return the logits of a fresh base with one adapter, as PEFT loads it."""
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))


def test_each_adapter_answers_as_if_alone(
    tiny_base: Path, folders: dict[str, Path], adapters: AdapterSet
) -> None:
    """Of five adapters of different kinds each gives PEFT's own logits, forth and back."""
    for name in (*folders, *reversed(folders)):
        adapters.switch(name)
        assert torch.equal(logits(adapters.model), alone(tiny_base, folders[name])), name
    assert list(adapters.adapters) == list(folders)
    assert trainable(adapters.model) == []


def test_switched_off_the_base_answers(tiny_base: Path, adapters: AdapterSet) -> None:
    """Disabled, the logits are the base's bit for bit, whichever adapter was active."""
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_base))
    for name in adapters.adapters:
        adapters.switch(name)
        assert not torch.equal(logits(adapters.model), base)
        adapters.disable()
        assert adapters.active is None
        assert torch.equal(logits(adapters.model), base)


def test_using_goes_back(adapters: AdapterSet) -> None:
    """After the block what answered before it answers again, also when the block failed."""
    adapters.switch("head")
    before = logits(adapters.model)
    with pytest.raises(UserError), adapters.using("plain"):
        adapters.switch("nobody")
    with adapters.using(None) as model:
        assert not torch.equal(logits(model), before)
    assert adapters.active == "head"
    assert torch.equal(logits(adapters.model), before)


def test_unloading_frees_the_name_and_the_weights(
    tiny_base: Path, folders: dict[str, Path], adapters: AdapterSet
) -> None:
    """An unloaded adapter leaves no weight behind; the others answer as before."""
    adapters.switch("wide")
    wide = logits(adapters.model)
    for name in ("plain", "head", "dora", "ends"):
        adapters.unload(name)
        assert not [key for key, _ in adapters.model.named_parameters() if f".{name}" in key]
        assert torch.equal(logits(adapters.model), wide)
    adapters.unload("wide")
    assert str(adapters.model) == str(AutoModelForCausalLM.from_pretrained(tiny_base))
    assert torch.equal(
        logits(adapters.model), logits(AutoModelForCausalLM.from_pretrained(tiny_base))
    )
    adapters.load(folders["head"], "plain")
    assert torch.equal(logits(adapters.model), alone(tiny_base, folders["head"]))


def changed(folder: Path, to: Path, **config: object) -> Path:
    """Copy an adapter, with changes to its configuration."""
    shutil.copytree(folder, to)
    file = to / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return to


def with_weights(folder: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy an adapter, with changes to its weights."""
    shutil.copytree(folder, to)
    weights = load_file(to / "adapter_model.safetensors")
    change(weights)
    save_file(weights, to / "adapter_model.safetensors", metadata={"format": "pt"})
    return to


UNFIT: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "rank": (lambda good, to: changed(good, to, r=16), r"have another shape.*\[2, 32\].*\[16, 32"),
    "targets": (lambda good, to: changed(good, to, target_modules=["c_attn"]), "c_attn"),
    "layers": (
        lambda _, to: tiny_adapter(tiny_llama(to / "deep", layers=3), to / "adapter"),
        "6 weights are unexpected, such as model.layers.2",
    ),
    "width": (
        lambda _, to: tiny_adapter(tiny_llama(to / "big", hidden_size=64), to / "adapter"),
        "another shape",
    ),
    "no LoRA": (
        lambda good, to: changed(good, to, peft_type="IA3"),
        "put the layers of one method",
    ),
    "changes the base": (
        lambda good, to: changed(good, to, init_lora_weights="pissa"),
        "changes the base's weights",
    ),
    "trains biases": (lambda good, to: changed(good, to, bias="all"), "trained biases"),
    "trains tokens": (
        lambda good, to: changed(good, to, trainable_token_indices=[1]),
        "single tokens",
    ),
    "incomplete": (
        lambda good, to: with_weights(good, to, lambda weights: weights.popitem()),
        "1 weights are missing",
    ),
    "adapts what another trained fully": (
        lambda good, to: lora_folder(
            Path(json.loads((good / "adapter_config.json").read_text())["base_model_name_or_path"]),
            to,
            target_modules=["lm_head"],
        ),
        "can't share a base with head",
    ),
    "another base's name": (
        lambda good, to: changed(good, to, base_model_name_or_path="org/other"),
        "org/other",
    ),
}


@pytest.mark.parametrize("case", UNFIT.values(), ids=UNFIT.keys())
def test_what_does_not_fit_changes_nothing(
    case: tuple[Callable[[Path, Path], Path], str],
    tiny_base: Path,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """An adapter that does not go with the base is refused with the reason; the set stays."""
    make, reason = case
    known = BaseModelSettings.model_validate(
        {"source": str(tiny_base), "dtype": "float32", "hub_id": "org/base"}
    )
    adapters = AdapterSet.on(known)
    adapters.load(folders["head"], "head")
    before, parameters = logits(adapters.model), dict(adapters.model.named_parameters())
    with pytest.raises(UserError, match=reason):
        adapters.load(make(folders["plain"], tmp_path / "bad"), "bad")
    assert (adapters.active, list(adapters.adapters)) == ("head", ["head"])
    assert dict(adapters.model.named_parameters()).keys() == parameters.keys()
    assert torch.equal(logits(adapters.model), before)


def test_a_load_that_fails_half_way_is_undone(
    tiny_base: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory runs out in the middle, the adapter is gone and can be loaded again."""
    adapters = on(tiny_base)
    base = logits(adapters.model)
    with monkeypatch.context() as patch:
        patch.setattr(type(adapters.model), "_load_pretrained_model", _run_out)
        with pytest.raises(MemoryError):
            adapters.load(folders["head"], "head")
    assert not adapters.adapters
    assert torch.equal(logits(adapters.model), base)
    adapters.load(folders["head"], "head")
    assert torch.equal(logits(adapters.model), alone(tiny_base, folders["head"]))


def _run_out(*_: object, **__: object) -> None:
    raise MemoryError


def test_an_adapter_for_another_architecture_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A Llama's adapter does not go on a GPT-2, even when the base's name is not looked at."""
    with pytest.raises(UserError, match="does not fit"):
        on(gpt2_base(tmp_path)).load(folders["plain"], any_base=True)


def test_the_fingerprint_tells_bases_apart(tiny_base: Path, tmp_path: Path) -> None:
    """Another base of the same shape is refused by its fingerprint, unless that is allowed."""
    saved = save_here(*trained(tiny_base, tmp_path), tmp_path)
    other = on(tiny_llama(tmp_path / "other", seed=7))
    with pytest.raises(UserError, match="was made for"):
        other.load(saved.folder)
    (warning,) = other.load(saved.folder, any_base=True).warnings
    assert "was made for" in warning
    assert on(tiny_base).load(saved.folder).warnings == ()


@pytest.mark.parametrize("what", ["vocabulary", "chat template"])
def test_another_tokenizer_is_refused(tiny_base: Path, tmp_path: Path, what: str) -> None:
    """An adapter trained with other tokens or another chat template would read other texts."""
    saved = save_here(*trained(tiny_base, tmp_path), tmp_path)
    copy = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer = tiny_tokenizer()
    if what == "vocabulary":
        tokenizer.add_tokens(["<new>"])
    else:
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(copy)
    with pytest.raises(UserError, match=what):
        on(copy).load(saved.folder)


def test_what_cannot_be_told_is_said(folders: dict[str, Path], tiny_base: Path) -> None:
    """An adapter that names its base by a path is loaded on the same shapes, with a warning."""
    copy = Path(shutil.copytree(tiny_base, folders["plain"].parent / "copy"))
    (warning,) = on(copy).load(folders["plain"]).warnings
    assert "may be another base" in warning


def test_a_tokenizer_saved_along_is_compared(
    tiny_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Of another program's adapter with a tokenizer in its folder, that vocabulary must match."""
    folder = Path(shutil.copytree(folders["plain"], tmp_path / "adapter"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "own"
    tokenizer.save_pretrained(folder)
    assert on(tiny_base).load(folder).tokenizer.chat_template == "own"
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="'<new>'"):
        on(tiny_base).load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the adapter .* has no usable tokenizer"):
        on(tiny_base).load(folder)


def test_a_tokenizer_saved_along_can_pad(
    tiny_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Where it has no padding token, as Llama's, the end token stands in as for the base's."""
    folder = Path(shutil.copytree(folders["plain"], tmp_path / "adapter"))
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    own = on(tiny_base).load(folder).tokenizer
    assert own.pad_token == own.eos_token


def test_a_name_that_a_container_has_is_refused(tiny_base: Path, folders: dict[str, Path]) -> None:
    """It is refused as in a configuration, and the set is as it was."""
    adapters = on(tiny_base)
    with pytest.raises(UserError, match="an adapter can't be named 'keys'"):
        adapters.load(folders["plain"], "keys")
    assert not adapters.adapters


def test_a_changed_file_is_noticed(tiny_base: Path, tmp_path: Path) -> None:
    """Weights that are not those that the manifest tells of are refused."""
    folder = save_here(*trained(tiny_base, tmp_path), tmp_path).folder
    bad = with_weights(folder, tmp_path / "bad", lambda weights: weights.popitem()[1].mul_(2))
    with pytest.raises(UserError, match="does not have the sha256 in manifest"):
        on(tiny_base).load(bad)


def test_embeddings_of_its_own_are_refused(
    tiny_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Base weights that PEFT saved along are left out if they are the base's, else refused."""
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in load_file(folders["ends"] / "adapter_model.safetensors")
    other = with_weights(folders["ends"], tmp_path / "other", lambda w: w[key].add_(1))
    with pytest.raises(UserError, match=r"contains its own model\.embed_tokens\.weight"):
        on(tiny_base).load(other)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "Käse"])
def test_names_are_plain(tiny_base: Path, folders: dict[str, Path], name: str) -> None:
    """A name that cannot be a module's or a folder's is refused."""
    with pytest.raises(UserError, match="only letters"):
        on(tiny_base).load(folders["plain"], name)


def test_an_unknown_name_lists_the_known(adapters: AdapterSet) -> None:
    """Switching to, using or unloading what is not there says what is."""
    for act in (adapters.switch, adapters.unload, lambda name: adapters.using(name).__enter__()):
        with pytest.raises(UserError, match="'french'; loaded: plain, wide"):
            act("french")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_packed_base_takes_them_too(tmp_path: Path, quantization: str) -> None:
    """On a 4-bit and an 8-bit base adapters come and go as exactly."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = {"source": str(base), "dtype": "float32", "quantization": quantization}
    adapters = AdapterSet.on(BaseModelSettings.model_validate(settings))
    plain = logits(adapters.model)
    found = {}
    for seed, name in enumerate("ab"):
        adapters.load(tiny_adapter(base, tmp_path / name, seed=seed), name)
        found[name] = logits(adapters.model)
    assert not torch.equal(found["a"], found["b"])
    for name in "abab":
        with adapters.using(name) as model:
            assert torch.equal(logits(model), found[name])
    adapters.disable()
    assert torch.equal(logits(adapters.model), plain)
