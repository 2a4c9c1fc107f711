"""A base model in memory: its type and packing, frozen, and without running anybody's code."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import injected, loaded, logits, train_here, training
from tiny_models import tiny_llama

from tasks.config import BaseModelSettings
from tasks.engine.adapters.injection import trainable
from tasks.engine.base import weight_dtype
from tasks.engine.base.base_models import load_base, load_config, load_skeleton, load_tokenizer
from tasks.engine.base.sources import find_base
from tasks.engine.data.tokens.tokenization import IGNORED
from tasks.errors import UserError
from tasks.records import BaseSource
from tasks.tracking.served_model import tokenizers as served_tokenizers


def settings(folder: Path, **more: object) -> BaseModelSettings:
    """Return settings for a folder."""
    return BaseModelSettings.model_validate({"source": str(folder), "dtype": "float32"} | more)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base whose width bitsandbytes can pack."""
    return tiny_llama(tmp_path_factory.mktemp("wide"), hidden_size=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_type_that_was_asked_for(tiny_base: Path, dtype: str) -> None:
    """All weights come in the type of the settings, and the record says it and their bytes."""
    model, record = loaded(tiny_base, settings(tiny_base, dtype=dtype))

    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert record.dtype == dtype
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert record.num_bytes == record.num_parameters * model.dtype.itemsize + buffers


@pytest.mark.parametrize(
    ("hardware", "dtype"), [("fast", torch.bfloat16), ("emulated", torch.float32)]
)
def test_automatic_type_is_what_the_hardware_is_fast_at(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, hardware: str, dtype: torch.dtype
) -> None:
    """`auto` takes bfloat16 only where it is multiplied fast."""
    monkeypatch.setattr(weight_dtype, "multiplies_bfloat16_fast", lambda: hardware == "fast")
    model, record = loaded(tiny_base, settings(tiny_base, dtype="auto"))

    assert model.dtype == dtype
    assert record.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "loads", [find_base, lambda wanted: loaded(Path(wanted.source), wanted)[1]]
)
def test_the_automatic_type_is_chosen_once(
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    loads: Callable[[BaseModelSettings], BaseSource],
) -> None:
    """A base that was found, or recorded, on one machine has the same type on another."""
    monkeypatch.setattr(weight_dtype, "multiplies_bfloat16_fast", lambda: True)
    source = loads(settings(tiny_base, dtype="auto"))
    monkeypatch.setattr(weight_dtype, "multiplies_bfloat16_fast", lambda: False)
    assert load_base(source).dtype == torch.bfloat16


def test_the_base_is_frozen_and_complete(tiny_base: Path) -> None:
    """No weight of a loaded base would train, and two loads answer the same."""
    model, _ = loaded(tiny_base)

    assert trainable(model) == []
    assert torch.equal(logits(model), logits(loaded(tiny_base)[0]))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_packed_base_trains_on_the_cpu(
    wide_base: Path, tmp_path: Path, quantization: str
) -> None:
    """A 4-bit and an 8-bit base are smaller, load, take an adapter and train."""
    packed = settings(wide_base, quantization=quantization)
    model, record = injected(wide_base, tmp_path, base_settings=packed)
    trained = train_here(model, record, tmp_path, training(max_steps=2))

    assert record.lora.base.num_bytes < loaded(wide_base)[1].num_bytes
    assert trained.num_steps == 2
    assert trained.adapter_change > 0


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_an_evaluation_changes_no_gradient_of_a_packed_base(
    wide_base: Path, tmp_path: Path, quantization: str
) -> None:
    """Gradients after an evaluation are those before it, whatever the CPU's fast paths do."""
    packed = settings(wide_base, dtype="bfloat16", quantization=quantization)
    model, _ = injected(wide_base, tmp_path, base_settings=packed)
    ids = torch.arange(24).reshape(1, 24)

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for _, p in trainable(model) if p.grad is not None]

    before = gradients()
    logits(model.eval())
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


def test_four_bits_are_nf4_twice_quantised(wide_base: Path) -> None:
    """`4bit` is what QLoRA uses: NF4, quantised scales, products in the base's type."""
    model, _ = loaded(wide_base, settings(wide_base, dtype="bfloat16", quantization="4bit"))
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    state = layer.weight.quant_state

    assert (state.quant_type, state.nested) == ("nf4", True)
    assert layer.compute_dtype == torch.bfloat16


def test_checkpointing_does_not_change_gradients(tiny_base: Path, tmp_path: Path) -> None:
    """Recomputing activations gives each adapter weight the same gradient."""
    gradients = []
    for recompute in (False, True):
        given = settings(tiny_base, gradient_checkpointing=recompute)
        model, _ = injected(tiny_base, tmp_path, base_settings=given)
        ids = torch.arange(40).reshape(2, 20)
        assert model.train().is_gradient_checkpointing is recompute
        model(input_ids=ids, labels=ids.where(ids > 3, IGNORED)).loss.backward()
        gradients.append({name: p.grad for name, p in trainable(model) if p.grad is not None})

    plain, recomputed = gradients
    assert len(plain) > 0
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-7) for name in plain)
    assert any(gradient.abs().max() > 0 for gradient in plain.values())


def test_code_beside_a_model_is_not_run(tiny_base: Path, tmp_path: Path) -> None:
    """A model that names its own Python code is loaded without it, or refused."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "own-code"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "ours.OurConfig",
        "AutoModelForCausalLM": "ours.OurModel",
    }
    ran = tmp_path / "ran"
    (folder / "ours.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for model_type in ("llama", "ours"):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        source = find_base(settings(folder))
        if model_type == "llama":
            assert type(load_base(source)).__module__.startswith("transformers.")
        else:
            with pytest.raises(UserError):
                load_config(source)
    assert not ran.exists()


@pytest.mark.parametrize(
    "load", [load_tokenizer, lambda at, _: served_tokenizers.load_tokenizer(at, at, None)]
)
def test_code_beside_a_tokenizer_is_not_run(
    load: Callable[[str, None], object],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tokenizer that names its own Python code is loaded without it, or refused: nobody is asked.

    Here and in MLflow.
    """
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    folder = Path(shutil.copytree(tiny_base, tmp_path / "own-code"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["ours.Ours", None]}, "tokenizer_class": "Ours"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (folder / "ours.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises((UserError, ValueError), match="contains custom code"):
        load(str(folder), None)
    assert not ran.exists()


def break_config(folder: Path) -> None:
    """Name an architecture that nobody knows."""
    (folder / "config.json").write_text('{"model_type": "no-such-thing"}')


def make_an_encoder(folder: Path) -> None:
    """Name an architecture that generates no text."""
    (folder / "config.json").write_text('{"model_type": "vit"}')


@pytest.mark.parametrize("spoil", [break_config, make_an_encoder])
def test_an_unfit_architecture_is_refused(
    tiny_base: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """An unknown architecture, or one that generates no text, is one line that names the folder."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "spoilt"))
    spoil(folder)
    with pytest.raises(UserError, match="spoilt") as caught:
        load_skeleton(find_base(settings(folder)))
    assert "\n" not in str(caught.value)


def test_broken_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A truncated weights file is an error that names the base."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "short"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="short"):
        load_base(find_base(settings(folder)))


def test_missing_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A base that lacks a layer's weights is not completed with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base, tmp_path / "holey"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj"):
        load_base(find_base(settings(folder)))


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_base: Path, tmp_path: Path) -> None:
    """A tokenizer that has no padding token uses its end token."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "unpadded"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    assert load_tokenizer(str(folder), None).pad_token_id == load_tokenizer(
        str(folder), None
    ).convert_tokens_to_ids("<|im_end|>")


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Without padding and end token no batch can be made, which is known before any weight."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    neither = {"pad_token": None, "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | neither))
    with pytest.raises(UserError, match="neither a padding nor an end token"):
        load_tokenizer(str(folder), None)


def test_a_slow_tokenizer_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A tokenizer in Python only cannot tell where tokens begin, and is refused."""
    shutil.copy(tiny_base / "config.json", tmp_path)
    (tmp_path / "vocab.json").write_text('{"a</w>": 0, "<unk>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(UserError, match="no fast version"):
        load_tokenizer(str(tmp_path), None)


def test_a_base_without_a_tokenizer_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A folder with a model alone is refused when its tokenizer is wanted."""
    shutil.copy(tiny_base / "config.json", tmp_path)
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_tokenizer(str(tmp_path), None)
