"""However rows become batches, the model sees each row as if it were alone."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from drawn_rows import adapted_llama, draw_rows, row
from torch.nn.functional import cross_entropy

from tasks.engine.batching import Batch, Batches, PaddedBatches, SharedPrefixBatches, as_items
from tasks.engine.tokenization import IGNORED, TokenizedRow, shared_prefix_length
from tasks.engine.trainer import labelled_logits, summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0
ROWS = draw_rows((2, 3), (7, 1), (1, 6), (4, 4))


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers."""
    return adapted_llama(tiny_base)


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
