"""An adapter as a GGUF file: llama.cpp answers with it as transformers does with the adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import gpt2_base, qwen2_base, random_base, save_here, trained
from plain_adapters import lora_folder
from tiny_gguf import gguf_base
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.adapters.gguf_adapter import write_gguf
from tasks.errors import UserError
from tasks.records import GgufRecord

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BASES: dict[str, tuple[str, Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": ("llama", LlamaConfig, {}),
    "mistral": ("llama", MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "phi3": ("phi3", Phi3Config, {}),
    "qwen2, tied": ("qwen2", Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", Qwen3Config, {"head_dim": 32}),
}
PROMPT = [*range(7, 40, 3)]
LETTER = 36


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 3},
    "another start": {"r": 4, "init_lora_weights": "orthogonal"},
    "ranks and alphas of their own": {
        "rank_pattern": {"o_proj": 5},
        "alpha_pattern": {"down_proj": 7},
    },
}
PROMPT = [*range(7, 40, 3)]
LETTER = 36
# llama.cpp keeps keys and values in float16.
TOLERANCE = 0.01


@pytest.fixture(scope="module", params=BASES)
def bases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Save a base as transformers has it, and as llama.cpp does."""
    architecture, config, more = BASES[request.param]
    folder = random_base(config(**SIZES | more), tmp_path_factory.mktemp("base") / "base")
    return folder, gguf_base(folder, folder.with_name("base.gguf"), architecture)


def in_llama_cpp(base: Path, adapter: Path | None) -> "torch.Tensor":
    """Return llama.cpp's log probabilities of what follows the prompt, by token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 256, 1, 1
    params.warmup = False
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    # It answers nothing where the next token is an end, or half a character: the bias picks one
    # that is neither, and the probabilities are those before it.
    question = {"prompt": PROMPT, "n_predict": 1, "n_probs": SIZES["vocab_size"]}
    answer = xllamacpp.Server(params).handle_completions(
        question | {"logit_bias": [[LETTER, 100.0]]}
    )
    found = torch.full((int(SIZES["vocab_size"]),), torch.nan)
    for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[one["id"]] = one["logprob"]
    return found


def in_transformers(base: Path, adapter: Path | None) -> "torch.Tensor":
    """Return those of transformers."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model.load_adapter(str(adapter))
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0, -1]
    return logits.log_softmax(-1)


def written(base: Path, adapter: Path, file: Path) -> GgufRecord:
    """Write an adapter for a base as a GGUF file."""
    return write_gguf(find_adapter(adapter), BaseModelSettings(source=str(base)), file)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_llama_cpp_answers_as_transformers_does(
    bases: tuple[Path, Path], tmp_path: Path, kind: dict[str, Any]
) -> None:
    """The same probabilities for each token, which are far from those without the adapter."""
    base, packed = bases
    adapter = lora_folder(
        base, tmp_path / "adapter", **{"r": 3, "target_modules": "all-linear", **kind}
    )
    record = written(base, adapter, tmp_path / "adapter.gguf")
    assert record.file.path.stat().st_size == record.file.size_bytes
    plain, expected = in_transformers(base, None), in_transformers(base, adapter)
    torch.testing.assert_close(in_llama_cpp(packed, None), plain, rtol=0, atol=TOLERANCE)
    found = in_llama_cpp(packed, record.file.path)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert (expected - plain).abs().max() > 10 * TOLERANCE


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "can't contain, such as .*lora_magnitude_vector"),
    "whole head": ({"modules_to_save": ["lm_head"]}, "can't contain, such as lm_head"),
    "biases": (
        {"bias": "lora_only", "target_modules": ["q_proj"]},
        "can't contain, such as .*bias",
    ),
    "embeddings": ({"target_modules": ["embed_tokens"]}, "can't contain, such as .*embed_tokens"),
}


@pytest.mark.parametrize(("kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_has_no_place_for_is_refused(
    tmp_path: Path, kind: dict[str, Any], message: str
) -> None:
    """The message says what it is and what to do, and nothing is written."""
    base = qwen2_base(tmp_path / "base")
    adapter = lora_folder(base, tmp_path / "adapter", **kind)
    with pytest.raises(UserError, match=f"{message}.*export --merged"):
        written(base, adapter, tmp_path / "adapter.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_an_output_layer_that_is_the_embeddings_is_refused(tmp_path: Path) -> None:
    """A GGUF base has no tensor for it, and llama.cpp would not load the file."""
    base = qwen2_base(tmp_path / "base")
    model, record = trained(base, tmp_path, LoraSettings(target_modules=("lm_head",)))
    adapter = save_here(model, record, tmp_path).folder
    with pytest.raises(UserError, match="lm_head, which is not a separate tensor"):
        written(base, adapter, tmp_path / "adapter.gguf")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    """GPT-2's fused and transposed layers are not guessed at."""
    base = gpt2_base(tmp_path / "base")
    adapter = lora_folder(base, tmp_path / "adapter", target_modules=["c_attn"])
    with pytest.raises(UserError, match=r"is a gpt2; .* for llama, mistral, "):
        written(base, adapter, tmp_path / "adapter.gguf")


def test_a_file_is_not_replaced(tiny_base: Path, tmp_path: Path) -> None:
    """What is there stays as it is."""
    adapter = lora_folder(tiny_base, tmp_path / "adapter")
    file = tmp_path / "adapter.gguf"
    file.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        written(tiny_base, adapter, file)
    assert file.read_text() == "precious"
