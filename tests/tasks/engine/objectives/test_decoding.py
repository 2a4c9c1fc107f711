"""Prompts continued together have the answers that `generate` gives each alone, in fewer steps."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from tasks.engine.objectives.decoding import can_decode, decode, prefix_length

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
_KEPT_APART: list[Any] = [
    LlamaConfig(**_SMALL),
    Qwen2Config(**_SMALL),
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=128),
]
_OTHERWISE: list[Any] = [
    MistralConfig(**_SMALL, sliding_window=8),
    LlamaConfig(
        **_SMALL,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16,
        },
    ),
    BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
    MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4),
]
_ENDS = [3, 7, 11, 13]


def _model(config: Any) -> Any:  # noqa: ANN401 - any model
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # answers that differ with the prompt
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


def _prompts(number: int = 9, common: int = 10) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(2)
    first = torch.randint(16, 64, (common,), generator=drawn).tolist()
    lengths = torch.randint(1, 9, (number,), generator=drawn).tolist()
    own = [torch.randint(16, 64, (length,), generator=drawn).tolist() for length in lengths]
    return sorted((first + tokens for tokens in own), key=len)


def _generated(
    model: Any,  # noqa: ANN401
    prompt: list[int],
    count: int,
    ends: list[int] = _ENDS,
) -> list[int]:
    how = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=ends, pad_token_id=0)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    return [int(token) for token in output[0, len(prompt) :]]


@pytest.mark.parametrize("config", _KEPT_APART, ids=lambda config: config.model_type)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("common", [0, 2, 10])
def test_answers_are_those_of_generate(config: Any, batch_size: int, common: int) -> None:  # noqa: ANN401
    """However many prompts are answered at once, each has the answer that it has alone."""
    model, prompts = _model(config), _prompts(common=common)
    assert can_decode(model, prompts)
    given = decode(model, prompts, max_new_tokens=12, ends=_ENDS, batch_size=batch_size)
    assert given == [_generated(model, prompt, 12) for prompt in prompts]
    assert len(set(map(len, given))) > 1  # some end before others


@pytest.mark.parametrize("config", _KEPT_APART, ids=lambda config: config.model_type)
@pytest.mark.parametrize("common", [0, 10])
def test_long_answers_are_those_of_generate(config: Any, common: int) -> None:  # noqa: ANN401
    """Answers that need more room than there is at first, and Llama's end at different times."""
    model, prompts = _model(config), _prompts(common=common)
    given = decode(model, prompts, max_new_tokens=80, ends=_ENDS[:1], batch_size=3)
    expected = [_generated(model, prompt, 80, _ENDS[:1]) for prompt in prompts]
    assert given == expected
    assert max(map(len, given)) > 50


def test_waiting_prompts_take_the_place_of_answers_that_ended() -> None:
    """A batch is kept full: steps are about as many as all tokens fill, not the longest answers."""
    model, prompts = _model(_KEPT_APART[0]), _prompts(number=24)
    rows: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]) if inputs[0].shape[1] == 1 else 0)
    )
    given = decode(model, prompts, max_new_tokens=40, ends=_ENDS, batch_size=4)
    lengths = list(map(len, given))
    apart = sum(max(lengths[start : start + 4]) - 1 for start in range(0, len(lengths), 4))
    assert sum(map(bool, rows)) < 0.8 * apart
    assert max(rows) == 4


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (2, 8)])
def test_more_rows_are_continued_where_they_are_small(batch_size: int, most: int) -> None:
    """Up to four times the batch, computed at its size before; a batch of one stays alone."""
    model, prompts = _model(_KEPT_APART[0]), _prompts()
    assert can_decode(model, prompts)
    begun: list[int] = []
    continued: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: (continued if inputs[0].shape[1] == 1 else begun).append(
            len(inputs[0])
        )
    )
    given = decode(model, prompts, max_new_tokens=12, ends=_ENDS[:1], batch_size=batch_size)
    assert max(continued) == most
    assert max(begun) == batch_size
    assert given == [_generated(model, prompt, 12, _ENDS[:1]) for prompt in prompts]


def test_a_window_counts_as_in_generate() -> None:
    """GPT-Neo's local attention counts places, padding included, and its cache doesn't show it."""
    config = GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        max_position_embeddings=128,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
    )
    model, prompts = _model(config), _prompts(common=30)
    assert can_decode(model, prompts)
    given = decode(model, prompts, max_new_tokens=12, ends=_ENDS, batch_size=16)
    assert given == [_generated(model, prompt, 12) for prompt in prompts]


def test_each_token_is_computed_once() -> None:
    """The common beginning is computed once for all rows, and an answer that ended no further."""
    model, prompts = _model(_KEPT_APART[0]), _prompts()
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].numel())
    )
    given = decode(model, prompts, max_new_tokens=12, ends=_ENDS, batch_size=16)
    length = prefix_length(prompts)
    longest = max(map(len, prompts)) - length
    # A row's last token is not computed: nothing follows it.
    assert sum(seen) == length + len(prompts) * longest + sum(len(one) - 1 for one in given)
    assert length == 10


def test_progress_is_told_when_answers_end() -> None:
    """Each prompt is counted once, when its answer has ended."""
    model, prompts = _model(_KEPT_APART[0]), _prompts()
    told: list[int] = []
    decode(model, prompts, max_new_tokens=12, ends=_ENDS, batch_size=16, on_progress=told.append)
    assert sum(told) == len(prompts)
    assert len(told) > 1


@pytest.mark.parametrize("config", _OTHERWISE, ids=lambda config: config.model_type)
@pytest.mark.parametrize("common", [0, 10])
def test_other_models_are_left_to_generate(config: Any, common: int) -> None:  # noqa: ANN401
    """A sliding window, places that are not given, and a state instead of keys and values."""
    assert not can_decode(_model(config), _prompts(common=common))


@pytest.mark.parametrize("common", [0, 10])
def test_a_model_that_counts_places_itself_is_found_out(
    monkeypatch: pytest.MonkeyPatch, common: int
) -> None:
    """A model that takes position ids and ignores them is tried, and left to `generate`."""
    model = _model(_KEPT_APART[2])
    layers = model.transformer.forward

    def ignoring(*given: Any, position_ids: Any = None, **more: Any) -> Any:  # noqa: ANN401
        return layers(*given, **more)

    monkeypatch.setattr(model.transformer, "forward", ignoring)
    assert not can_decode(model, _prompts(common=common))


@pytest.mark.parametrize(
    "wish", [{"suppress_tokens": [5]}, {"min_new_tokens": 4}, {"stop_strings": ["x"]}]
)
def test_a_model_with_other_wishes_is_left_to_generate(wish: dict[str, Any]) -> None:
    """What the model's generation configuration asks for beside the likeliest token is honored."""
    model, prompts = _model(_KEPT_APART[0]), _prompts()
    assert can_decode(model, prompts)
    model.generation_config.update(**wish)
    assert not can_decode(model, prompts)
