"""Rows are packed, and their prefix shared, only where the model is shown to take it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from drawn_rows import adapted_llama, draw_conversations, draw_rows, row
from exact_training import half_4bit
from peft import LoraConfig
from tiny_models import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from tasks.config import Batching, TrainingSettings
from tasks.engine.batching.choice import choose_batching
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.tokenization import TokenizedRow
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0
SIZES: dict[str, Any] = {
    "vocab_size": 382,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.1,
}

ROWS = draw_rows((2, 3), (7, 1), (1, 6), (4, 4))


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers."""
    return adapted_llama(tiny_base)


def data_of(rows: list[TokenizedRow], held_out: list[TokenizedRow] | None = None) -> PreparedData:
    """Return rows as prepared data, as far as the choice of batches looks at it."""
    return cast(
        "PreparedData",
        SimpleNamespace(
            renderer=SimpleNamespace(tokenizer=tiny_tokenizer()),
            train=SimpleNamespace(rows=rows),
            eval=SimpleNamespace(rows=held_out) if held_out else None,
        ),
    )


def choose(
    model: "PreTrainedModel", data: PreparedData, batching: Batching = Batching.AUTO
) -> tuple[str, tuple[str, ...]]:
    """Choose batches; the way's name and the warnings."""
    choice = choose_batching(TrainingSettings(batching=batching), data, model)
    return choice.batching, choice.warnings


def test_a_4bit_base_in_half_precision_is_packed(tmp_path: Path) -> None:
    """What counts is the type it computes in, not that of its norms, which PEFT makes float32."""
    batching, _ = choose(half_4bit(tmp_path), data_of(ROWS))
    assert batching == Batching.SHARED_PREFIX


def test_auto_shares_a_prefix_that_is_worth_it(model: "PreTrainedModel") -> None:
    """A fifth of the tokens is worth sharing, less is not; held-out rows must share it, too."""
    little = draw_rows((30, 3), (40, 3), prefix_length=5)

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())
    assert choose(model, data_of(little)) == ("packed", ())
    assert choose(model, data_of(ROWS, [row(range(20, 40), [7])])) == ("packed", ())
    assert choose(model, data_of(ROWS), Batching.PADDED) == ("padded", ())
    assert choose(model, data_of(ROWS), Batching.PACKED) == ("packed", ())
    assert choose(model, data_of(little), Batching.SHARED_PREFIX) == ("shared-prefix", ())
    assert model.training


def test_auto_shares_what_turns_share(model: "PreTrainedModel") -> None:
    """Rows of a conversation share what they begin with, with or without a prefix of all rows."""
    apart = draw_conversations(3, 1, prefix_length=0)

    assert choose(model, data_of(apart)) == ("shared-prefix", ())
    assert choose(model, data_of(apart), Batching.SHARED_PREFIX) == ("shared-prefix", ())
    assert choose(model, data_of(apart[3:], apart[:3])) == ("shared-prefix", ())
    assert choose(model, data_of(apart), Batching.PACKED) == ("packed", ())
    assert choose(model, data_of(apart[2:])) == ("packed", ())


def test_prefix_that_is_not_there_is_refused(model: "PreTrainedModel") -> None:
    """`shared-prefix` for rows that begin differently is the user's mistake."""
    rows = [row([5, 6, 7], [8]), row([6, 6, 7], [8])]

    with pytest.raises(UserError, match="the rows have no prefix in common"):
        choose(model, data_of(rows), Batching.SHARED_PREFIX)


def _sliding(window: int) -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window))


DEAF_MODELS: dict[str, Callable[[], "PreTrainedModel"]] = {
    "window that two tokens fall out of": lambda: _sliding(17),
    "short window": lambda: _sliding(4),
    "scores that are capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=5.0, final_logit_softcapping=None)
    ),
    "distances by place in the sequence": lambda: MptForCausalLM(
        MptConfig(vocab_size=382, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
    ),
    "no mask of this shape": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=382, hidden_size=32, n_layer=2, n_head=4)
    ),
}


class _Flat(LlamaForCausalLM):
    """A model that takes rows behind one prefix, but no prefix behind another."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_to_keep: torch.Tensor,
        use_cache: bool,  # noqa: FBT001 - as transformers has it
    ) -> object:
        if attention_mask.ndim == 4 and attention_mask[0, 0, 1].max() > 0:
            raise ValueError("it takes one prefix")
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )


def test_shared_turns_are_tried_before_training() -> None:
    """Where packing fails for shared turns only, `auto` pads and warns why."""
    torch.manual_seed(0)
    model = _Flat(LlamaConfig(**SIZES)).requires_grad_(requires_grad=False)

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())
    name, [warning] = choose(model, data_of(draw_conversations(1, 3)))
    assert name == "padded"
    assert (
        warning
        == "_Flat does not accept packed rows (it takes one prefix), so rows are padded instead"
    )


@pytest.mark.parametrize("make", DEAF_MODELS.values(), ids=DEAF_MODELS)
def test_model_that_does_not_follow_the_mask_gets_padded_rows(
    make: Callable[[], "PreTrainedModel"],
) -> None:
    """Where a shared prefix would change what is learned, `auto` pads and says why."""
    torch.manual_seed(0)
    model = make().requires_grad_(requires_grad=False)

    name, [warning] = choose(model, data_of(ROWS))

    assert name == "padded"
    assert warning.endswith("so rows are padded instead")
    assert type(model).__name__ in warning
    with pytest.raises(UserError, match="use padded"):
        choose(model, data_of(ROWS), Batching.SHARED_PREFIX)


def test_mask_is_tried_on_held_out_rows_too() -> None:
    """Training rows that the model's window holds say nothing of longer held-out ones."""
    torch.manual_seed(0)
    model = _sliding(17).requires_grad_(requires_grad=False)

    name, warnings = choose(model, data_of(ROWS[:1], ROWS[1:]))

    assert choose(model, data_of(ROWS[:1])) == ("shared-prefix", ())
    assert (name, len(warnings)) == ("padded", 1)


TAKING_MODELS: dict[str, Callable[[], "PreTrainedModel"]] = {
    "absolute positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=382, n_embd=32, n_layer=2, n_head=4, bos_token_id=1)
    ),
    "window that holds every row": lambda: _sliding(64),
    "attention without a kernel": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES | {"attn_implementation": "eager"})
    ),
}


@pytest.mark.parametrize("make", TAKING_MODELS.values(), ids=TAKING_MODELS)
def test_models_that_keep_rows_apart_share_the_prefix(
    make: Callable[[], "PreTrainedModel"],
) -> None:
    """Trying it leaves the model's own attention in place."""
    torch.manual_seed(0)
    model = make().requires_grad_(requires_grad=False)
    before = model.config._attn_implementation

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())
    assert model.config._attn_implementation == before


def test_half_precision_does_not_look_like_a_deaf_model(model: "PreTrainedModel") -> None:
    """What bfloat16 rounds off is no reason to give up sharing."""
    model.bfloat16()

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())


def test_what_stays_as_it_was_is_said(tiny_base: Path) -> None:
    """DoRA's layers and an output layer that trains are computed as their libraries do it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], use_dora=True))
    model.lm_head.weight.requires_grad_(requires_grad=True)

    name, [layers, loss] = choose(model, data_of(ROWS))

    assert name == "shared-prefix"
    assert layers.startswith("2 adapter layers are not plain LoRA")
    assert "not the unchanged output of a frozen linear layer" in loss


def test_part_size_is_the_users_to_set(model: "PreTrainedModel") -> None:
    """`batch_tokens` is taken as it is given, and chosen where it is not."""
    for given, expected in ((77, 77), ("auto", 1024)):
        settings = TrainingSettings.model_validate({"batch_tokens": given})
        assert choose_batching(settings, data_of(ROWS), model).batch_tokens == expected
