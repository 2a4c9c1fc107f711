"""Whatever stands in a file, it is accepted, or refused in a message that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_json import spoiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings, BaseModelSettings, RowFormat, TrainAdapterConfig
from tasks.engine.adapters.folders import find_adapter
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of, check_adapters
from tasks.validate_inputs import check_base_early

drawn = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.1,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 382,
}
ADAPTER = {
    "alpha_pattern": {"q_proj": 8},
    "base_model_name_or_path": "org/base",
    "bias": "none",
    "exclude_modules": None,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": [0, 1],
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {"v_proj": 4},
    "revision": None,
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}
MANIFEST = {
    "adapter_name": "default",
    "base_model": {
        "reference": "org/base",
        "revision": None,
        "fingerprint": None,
        "source": "org/base",
        "dtype": "float32",
        "quantization": "none",
        "task": "causal-lm",
        "labels": [],
    },
    "template": "chat",
    "warnings": [],
    "files": {},
}


def is_refused(named: tuple[str, ...], use: Callable[[], object]) -> bool:
    """Return whether it is refused, in one short message with one of the names in it."""
    try:
        use()
    except UserError as mistake:
        message = str(mistake)
        assert any(name in message for name in named), message
        assert "\n" not in message
        assert len(message) < 1500
        return True
    return False


def write(file: Path, content: dict[str, Any]) -> None:
    """Write JSON to a file that is new, also to caches that go by a file's time."""
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content))
    os.utime(file, ns=(0, hash(file.read_bytes()) % 10**17))


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base to write configurations to."""
    return Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("drawn") / "base"))


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter to write configurations and manifests to."""
    return tiny_adapter(tiny_base, tmp_path_factory.mktemp("drawn") / "adapter")


def use_base(folder: Path) -> None:
    """Check a base as `train` does."""
    config = TrainAdapterConfig.model_validate(
        {"base_model": {"source": str(folder)}, "data": {"train": "rows.jsonl"}}
    )
    check_base_early(config, [RowFormat.MESSAGES])


def use_adapter(folder: Path, base: Path) -> None:
    """Check an adapter as `predict` does."""
    found = find_adapter(folder)
    base_of(found, str(base))
    settings = BaseModelSettings.model_validate({"source": str(base)})
    wanted = AdapterSettings(source=str(folder), any_base=True)
    check_adapters(settings, [wanted], [found])


@drawn
@given(content=spoiled(CONFIG))
def test_a_base_is_used_or_refused(base: Path, content: dict[str, Any]) -> None:
    """A spoiled config.json raises nothing but a message that names it or its folder."""
    write(base / "config.json", content)
    is_refused(("config.json", str(base)), lambda: use_base(base))


@drawn
@given(content=spoiled(ADAPTER))
def test_an_adapter_is_used_or_refused(
    adapter: Path, tiny_base: Path, content: dict[str, Any]
) -> None:
    """A spoiled adapter_config.json raises nothing but a message that names it or its folder."""
    (adapter / "manifest.json").unlink(missing_ok=True)
    write(adapter / "adapter_config.json", content)
    is_refused(("adapter_config.json", str(adapter)), lambda: use_adapter(adapter, tiny_base))


@drawn
@given(content=spoiled(MANIFEST))
def test_a_manifest_is_used_or_refused(
    adapter: Path, tiny_base: Path, content: dict[str, Any]
) -> None:
    """A spoiled manifest.json raises nothing but a message that names it or its folder."""
    write(adapter / "adapter_config.json", ADAPTER)
    write(adapter / "manifest.json", content)
    is_refused(("manifest.json", str(adapter)), lambda: use_adapter(adapter, tiny_base))


@pytest.mark.parametrize("content", [CONFIG])
def test_the_valid_files_are_used(
    base: Path, adapter: Path, tiny_base: Path, content: dict[str, Any]
) -> None:
    """What is spoiled above is valid as it is, so that a refusal is for what was spoiled."""
    write(base / "config.json", content)
    assert not is_refused((), lambda: use_base(base))
    write(adapter / "adapter_config.json", ADAPTER)
    write(adapter / "manifest.json", MANIFEST)
    assert not is_refused((), lambda: use_adapter(adapter, tiny_base))


@drawn
@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_weights(adapter: Path, tmp_path: Path, content: bytes) -> None:
    """Bytes that are not a safetensors file are refused, with the file's name."""
    folder = tmp_path / "adapter"
    if not folder.exists():
        shutil.copytree(adapter, folder)
        write(folder / "adapter_config.json", ADAPTER)
        (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    assert is_refused(("adapter_model.safetensors",), lambda: find_adapter(folder))
