"""However rows become batches, the model sees each row as if it were alone."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from peft import LoraConfig
from tiny_models import tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
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
from tasks.engine.batch_choice import choose_batches
from tasks.engine.batching import Batch, Batches, PaddedBatches, SharedPrefixBatches, as_items
from tasks.engine.prepared_data import PreparedData
from tasks.engine.tokenization import IGNORED, TokenizedRow, shared_prefix_length
from tasks.engine.trainer import labelled_logits, summed_loss
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


def row(prompt: Iterable[int], answer: Iterable[int]) -> TokenizedRow:
    """Make a row that trains on its answer."""
    prompt, answer = list(prompt), list(answer)
    return TokenizedRow([*prompt, *answer], [IGNORED] * len(prompt) + answer)


def draw_rows(*sizes: tuple[int, int], prefix_length: int = 12) -> list[TokenizedRow]:
    """Make rows that begin alike, with so many own tokens of prompt and answer."""
    draw = random.Random(0)  # noqa: S311 - no secret

    def tokens(count: int) -> list[int]:
        return [draw.randrange(4, 380) for _ in range(count)]

    prefix = tokens(prefix_length)
    return [row([*prefix, *tokens(prompt)], tokens(answer)) for prompt, answer in sizes]


ROWS = draw_rows((2, 3), (7, 1), (1, 6), (4, 4))


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers, and freeze the rest."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    model.train()
    return model


def alone(model: "PreTrainedModel", one: TokenizedRow) -> torch.Tensor:
    """Give the labelled positions' logits of a row alone, by nothing but `input_ids`."""
    logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
    return cast("torch.Tensor", logits[torch.tensor(one.labels[1:]) != IGNORED])


def by_row(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Give the labelled positions' logits of a batch, row after row."""
    return labelled_logits(model, batch)[batch["labels"] != IGNORED]


@pytest.mark.parametrize("batches", [PaddedBatches(PAD), SharedPrefixBatches(12)])
def test_batch_gives_each_row_its_own_logits_and_loss(
    model: "PreTrainedModel", batches: Batches
) -> None:
    """Neither padding nor a neighbour changes a row's logits or its share of the loss."""
    batch = batches(as_items(ROWS))

    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in ROWS])
        given, loss = by_row(model, batch), summed_loss(model, batch)

    labels = [label for one in ROWS for label in one.labels[1:] if label != IGNORED]
    assert torch.allclose(given, expected, atol=1e-5)
    assert batch["labels"][batch["labels"] != IGNORED].tolist() == labels
    whole = cross_entropy(expected, torch.tensor(labels), reduction="sum")
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


def test_both_ways_train_the_adapter_alike(model: "PreTrainedModel") -> None:
    """A shared prefix gives the same loss and, for every adapter weight, the same gradient."""
    losses, gradients = [], []
    for batches in (PaddedBatches(PAD), SharedPrefixBatches(12)):
        model.zero_grad()
        loss = summed_loss(model, batches(as_items(ROWS)))
        loss.backward()
        losses.append(loss.item())
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        gradients.append({name: grad.clone() for name, grad in trained.items() if grad is not None})

    padded, shared = gradients
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert padded.keys() == shared.keys()
    assert len(padded) == 8
    for name, gradient in padded.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(shared[name], gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("batches", [PaddedBatches(PAD), SharedPrefixBatches(12)])
def test_loss_is_that_of_trainers_own_way(model: "PreTrainedModel", batches: Batches) -> None:
    """Computing only the labelled positions gives transformers' loss over all positions."""
    with torch.no_grad():
        means = [
            model(input_ids=torch.tensor([r.input_ids]), labels=torch.tensor([r.labels])).loss
            for r in ROWS
        ]
        ours = summed_loss(model, batches(as_items(ROWS)))

    sums = [float(mean) * one.num_trained_tokens for mean, one in zip(means, ROWS, strict=True)]
    assert ours.item() == pytest.approx(sum(sums), rel=1e-5)


@pytest.mark.parametrize("batches", [PaddedBatches(PAD), SharedPrefixBatches(12)])
def test_masked_tokens_do_not_move_the_loss(model: "PreTrainedModel", batches: Batches) -> None:
    """A token without a label after the answer counts for nothing; one with a label counts."""
    longer = [TokenizedRow([*r.input_ids, 9], [*r.labels, IGNORED]) for r in ROWS]
    labelled = [TokenizedRow([*r.input_ids, 9], [*r.labels, 9]) for r in ROWS]

    with torch.no_grad():
        loss, same, more = (
            summed_loss(model, batches(as_items(rows))).item() for rows in (ROWS, longer, labelled)
        )

    assert same == pytest.approx(loss, rel=1e-5)
    assert more > loss + 1


class _WholeLogits(torch.nn.Module):
    """A model whose forward knows neither `logits_to_keep` nor position ids."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        use_cache: bool,  # noqa: FBT001 - as transformers has it
    ) -> object:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_model_without_logits_to_keep_gives_the_same_logits(model: "PreTrainedModel") -> None:
    """The labelled positions are picked afterwards where the model can't be told of them."""
    batch = PaddedBatches(PAD)(as_items(ROWS))
    whole = cast("PreTrainedModel", _WholeLogits(model))

    with torch.no_grad():
        kept, picked = labelled_logits(model, batch), labelled_logits(whole, batch)

    assert kept.shape[1] == picked.shape[1] == batch["labels"].shape[1] < 18
    present = batch["labels"] != IGNORED
    assert torch.allclose(kept[present], picked[present], atol=1e-5)


def test_padding_is_on_the_left_and_unseen() -> None:
    """Two rows as a batch, written out."""
    batch = PaddedBatches(PAD)(as_items([row([5, 6], [7]), row([5], [8, 9, 4])]))

    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[0, 5, 6, 7], [5, 8, 9, 4]],
        "attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]],
        "position_ids": [[0, 0, 1, 2], [0, 1, 2, 3]],
        "logits_to_keep": [0, 1, 2],
        "labels": [[-100, -100, 7], [8, 9, 4]],
        "shift_labels": [[-100, -100, 7], [8, 9, 4]],
    }


def test_row_sees_the_prefix_and_itself_only() -> None:
    """Two rows after their prefix of two tokens, written out."""
    batch = SharedPrefixBatches(2)(as_items([row([5, 6, 1], [7]), row([5, 6, 2], [8, 9])]))

    picture = [
        "".join("■" if seen else "." for seen in line) for line in batch["attention_mask"][0, 0]
    ]
    assert picture == [
        "■......",
        "■■.....",
        "■■■....",
        "■■■■...",
        "■■..■..",
        "■■..■■.",
        "■■..■■■",
    ]
    assert batch["input_ids"].tolist() == [[5, 6, 1, 7, 2, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch["logits_to_keep"].tolist() == [2, 4, 5]
    assert batch["labels"].tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([row([1, 2, 3], [4]), row([1, 2, 5], [4])], 2),
        ([row([1, 2, 3], [4])] * 2, 2),
        ([row([1, 2, 3], [4, 5])], 2),
        ([row([1, 2], [3, 4, 6]), row([1, 2], [3, 4, 5])], 1),
        ([row([1, 2, 3], [4, 5]), row([1, 2], [3, 4, 5])], 1),
        ([row([1, 2, 3], [4]), row([9, 2, 3], [4])], 0),
        ([row([1], [2]), row([1], [3])], 0),
        ([row([], [1, 2]), row([], [1, 2])], 0),
        ([row([1, 2, 3], [4]), row([1, 2, 3, 5], [4]), row([1, 2], [7])], 1),
    ],
    ids=[
        "differ later",
        "identical",
        "one row",
        "alike into the answer",
        "prompt that is another's answer",
        "differ at once",
        "nothing but one token",
        "no prompt",
        "three lengths",
    ],
)
def test_shared_prefix_ends_before_every_answer(rows: list[TokenizedRow], length: int) -> None:
    """The prefix leaves each row an unlabelled token of its own, however alike the rows are."""
    assert shared_prefix_length(rows) == length


@pytest.mark.parametrize(
    "rows",
    [
        [ROWS[0]] * 3,
        [ROWS[0]],
        [row([5, 6, 7], [8, 9, 10]), row([5, 6, 7], [8, 9, 11])],
        [row([5, 6, 7], [8]), row([5, 6], [7, 8])],
    ],
    ids=["identical", "one row", "alike into the answer", "prompt that is another's answer"],
)
def test_longest_prefix_loses_no_label(model: "PreTrainedModel", rows: list[TokenizedRow]) -> None:
    """Even where rows share all they can, each keeps its own loss."""
    shared = SharedPrefixBatches(shared_prefix_length(rows))(as_items(rows))

    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in rows])
        assert torch.allclose(by_row(model, shared), expected, atol=1e-5)


def data_of(rows: list[TokenizedRow], held_out: list[TokenizedRow] | None = None) -> PreparedData:
    """Give rows as prepared data, as far as the choice of batches looks at it."""
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
    """Choose batches; the way's name and the remarks."""
    batches, remarks = choose_batches(TrainingSettings(batching=batching), data, model)
    return batches.name, remarks


def test_auto_shares_a_prefix_that_is_worth_it(model: "PreTrainedModel") -> None:
    """A fifth of the tokens is worth sharing, less is not; held-out rows must share it, too."""
    little = draw_rows((30, 3), (40, 3), prefix_length=5)

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())
    assert choose(model, data_of(little)) == ("padded", ())
    assert choose(model, data_of(ROWS, [row(range(20, 40), [7])])) == ("padded", ())
    assert choose(model, data_of(ROWS), Batching.PADDED) == ("padded", ())
    assert choose(model, data_of(little), Batching.SHARED_PREFIX) == ("shared-prefix", ())
    assert model.training


def test_prefix_that_is_not_there_is_refused(model: "PreTrainedModel") -> None:
    """`shared-prefix` for rows that begin differently is the user's mistake."""
    rows = [row([5, 6, 7], [8]), row([6, 6, 7], [8])]

    with pytest.raises(UserError, match="the rows begin differently"):
        choose(model, data_of(rows), Batching.SHARED_PREFIX)


def _sliding(window: int) -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window))


DEAF_MODELS: dict[str, Callable[[], "PreTrainedModel"]] = {
    "window that two tokens fall out of": lambda: _sliding(17),
    "short window": lambda: _sliding(4),
    "mask that is added and not applied": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES | {"attn_implementation": "eager"})
    ),
    "distances by place in the sequence": lambda: MptForCausalLM(
        MptConfig(vocab_size=382, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
    ),
    "no mask of this shape": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=382, hidden_size=32, n_layer=2, n_head=4)
    ),
}


@pytest.mark.parametrize("make", DEAF_MODELS.values(), ids=DEAF_MODELS)
def test_model_that_does_not_follow_the_mask_gets_padded_rows(
    make: Callable[[], "PreTrainedModel"],
) -> None:
    """Where a shared prefix would change what is learnt, `auto` pads and says why."""
    torch.manual_seed(0)
    model = make().requires_grad_(requires_grad=False)

    name, [remark] = choose(model, data_of(ROWS))

    assert name == "padded"
    assert remark.endswith("so rows are padded instead")
    assert type(model).__name__ in remark
    with pytest.raises(UserError, match="use padded"):
        choose(model, data_of(ROWS), Batching.SHARED_PREFIX)


def test_mask_is_tried_on_held_out_rows_too() -> None:
    """Training rows that the model's window holds say nothing of longer held-out ones."""
    torch.manual_seed(0)
    model = _sliding(17).requires_grad_(requires_grad=False)

    name, remarks = choose(model, data_of(ROWS[:1], ROWS[1:]))

    assert choose(model, data_of(ROWS[:1])) == ("shared-prefix", ())
    assert (name, len(remarks)) == ("padded", 1)


@pytest.mark.parametrize("window", [None, 64])
def test_models_that_follow_the_mask_share_the_prefix(window: int | None) -> None:
    """Absolute positions (GPT-2's) and a window that holds every row do no harm."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=382, n_embd=32, n_layer=2, n_head=4, bos_token_id=1)
    model: PreTrainedModel = GPT2LMHeadModel(gpt2) if window is None else _sliding(window)
    model.requires_grad_(requires_grad=False)

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())


def test_half_precision_does_not_look_like_a_deaf_model(model: "PreTrainedModel") -> None:
    """What bfloat16 rounds off is no reason to give up sharing."""
    model.bfloat16()

    assert choose(model, data_of(ROWS)) == ("shared-prefix", ())
