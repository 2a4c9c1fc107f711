"""However rows become batches, the model sees each row as if it were alone."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from drawn_rows import adapted_llama, draw_rows, row
from torch.nn.functional import cross_entropy

from tasks.engine.batching import Batches, PackedBatches, PaddedBatches, as_items
from tasks.engine.loss import labelled_logits, summed_loss
from tasks.engine.row_attention import attending_by_row
from tasks.engine.tokenization import IGNORED, TokenizedRow, shared_prefix_length

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

PAD = 0
MANY = 10_000
ROWS = draw_rows((2, 3), (7, 1), (1, 6), (4, 4))
WAYS: list[Batches] = [
    PaddedBatches(PAD, MANY),
    PaddedBatches(PAD, 40),
    PackedBatches(0, MANY),
    PackedBatches(12, MANY),
    PackedBatches(12, 25),
]
each_way = pytest.mark.parametrize("batches", WAYS, ids=lambda way: f"{way.name}-{way.max_tokens}")


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers."""
    return adapted_llama(tiny_base)


def alone(model: "PreTrainedModel", one: TokenizedRow) -> torch.Tensor:
    """Give the labelled positions' logits of a row alone, by nothing but `input_ids`."""
    logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
    return cast("torch.Tensor", logits[torch.tensor(one.labels[1:]) != IGNORED])


def logits_and_labels(
    model: "PreTrainedModel", batches: Batches, rows: list[TokenizedRow]
) -> tuple[torch.Tensor, list[int]]:
    """Give the labelled positions' logits of a batch, and their labels."""
    logits, labels = [], []
    with torch.no_grad(), packing(model, batches):
        for part in batches(as_items(rows))["parts"]:
            present = part["labels"] != IGNORED
            logits.append(labelled_logits(model, part)[present])
            labels += part["labels"][present].tolist()
    return torch.cat(logits), labels


def loss_of(model: "PreTrainedModel", batches: Batches, rows: list[TokenizedRow]) -> float:
    """Give the summed loss of a batch."""
    with torch.no_grad(), packing(model, batches):
        return sum(summed_loss(model, part).item() for part in batches(as_items(rows))["parts"])


def packing(model: "PreTrainedModel", batches: Batches) -> "AbstractContextManager[None]":
    """Let the model keep packed rows apart."""
    return attending_by_row(model) if isinstance(batches, PackedBatches) else nullcontext()


@each_way
def test_batch_gives_each_row_its_own_logits_and_loss(
    model: "PreTrainedModel", batches: Batches
) -> None:
    """Neither padding nor a neighbour nor a cut changes a row's logits or its share of the loss."""
    longest_first = sorted(ROWS, key=lambda one: len(one.input_ids), reverse=True)
    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in longest_first])
    given, labels = logits_and_labels(model, batches, ROWS)

    assert labels == [x for one in longest_first for x in one.labels[1:] if x != IGNORED]
    assert torch.allclose(given, expected, atol=1e-5)
    whole = cross_entropy(expected, torch.tensor(labels), reduction="sum")
    assert loss_of(model, batches, ROWS) == pytest.approx(whole.item(), rel=1e-5)


@each_way
def test_loss_is_that_of_trainers_own_way(model: "PreTrainedModel", batches: Batches) -> None:
    """Computing only the labelled positions gives transformers' loss over all positions."""
    with torch.no_grad():
        means = [
            model(input_ids=torch.tensor([r.input_ids]), labels=torch.tensor([r.labels])).loss
            for r in ROWS
        ]
    sums = [float(mean) * one.num_trained_tokens for mean, one in zip(means, ROWS, strict=True)]
    assert loss_of(model, batches, ROWS) == pytest.approx(sum(sums), rel=1e-5)


@each_way
def test_masked_tokens_do_not_move_the_loss(model: "PreTrainedModel", batches: Batches) -> None:
    """A token without a label after the answer counts for nothing; one with a label counts."""
    longer = [TokenizedRow([*r.input_ids, 9], [*r.labels, IGNORED]) for r in ROWS]
    labelled = [TokenizedRow([*r.input_ids, 9], [*r.labels, 9]) for r in ROWS]
    loss, same, more = (loss_of(model, batches, rows) for rows in (ROWS, longer, labelled))

    assert same == pytest.approx(loss, rel=1e-5)
    assert more > loss + 1


@pytest.mark.parametrize("make", [lambda n: PaddedBatches(PAD, n), lambda n: PackedBatches(12, n)])
@pytest.mark.parametrize("max_tokens", [1, 30, 45, 60, MANY])
def test_no_part_is_larger_than_allowed(make: "Callable[[int], Batches]", max_tokens: int) -> None:
    """Only a row that is larger by itself makes a larger part; no row and no label is lost."""
    batch = make(max_tokens)(as_items(ROWS))
    for part in batch["parts"]:
        is_one_row = part["labels"].ne(IGNORED).sum() <= max(r.num_trained_tokens for r in ROWS)
        assert part["input_ids"].numel() <= max_tokens or is_one_row
    trained = sum(row.num_trained_tokens for row in ROWS)
    assert int(batch["labels"].ne(IGNORED).sum()) == trained
    assert torch.equal(batch["labels"], batch["shift_labels"])


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
    [part] = PaddedBatches(PAD, MANY)(as_items(ROWS))["parts"]
    whole = cast("PreTrainedModel", _WholeLogits(model))

    with torch.no_grad():
        kept, picked = labelled_logits(model, part), labelled_logits(whole, part)

    assert kept.shape[1] == picked.shape[1] == part["labels"].shape[1] < 18
    present = part["labels"] != IGNORED
    assert torch.allclose(kept[present], picked[present], atol=1e-5)


def test_padding_is_on_the_left_and_unseen() -> None:
    """Two rows as a batch, written out; the last label's own token is not computed."""
    [part] = PaddedBatches(PAD, MANY)(as_items([row([5, 6], [7]), row([5], [8, 9, 4])]))["parts"]

    assert {name: tensor.tolist() for name, tensor in part.items()} == {
        "input_ids": [[5, 8, 9], [0, 5, 6]],
        "attention_mask": [[1, 1, 1], [0, 1, 1]],
        "position_ids": [[0, 1, 2], [0, 0, 1]],
        "logits_to_keep": [0, 1, 2],
        "labels": [[8, 9, 4], [-100, -100, 7]],
    }


def test_rows_are_packed_after_their_prefix() -> None:
    """Two rows after their prefix of two tokens, written out."""
    rows = as_items([row([5, 6, 1], [7]), row([5, 6, 2], [8, 9])])
    [part] = PackedBatches(2, MANY)(rows)["parts"]

    assert {name: tensor.tolist() for name, tensor in part.items()} == {
        "input_ids": [[5, 6, 2, 8, 1]],
        "attention_mask": [[[[2, 4, 5]]]],
        "position_ids": [[0, 1, 2, 3, 2]],
        "logits_to_keep": [2, 3, 4],
        "labels": [[8, 9, 7]],
    }


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
    batches = PackedBatches(shared_prefix_length(rows), MANY)
    longest_first = sorted(rows, key=lambda one: len(one.input_ids), reverse=True)

    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in longest_first])
    assert torch.allclose(logits_and_labels(model, batches, rows)[0], expected, atol=1e-5)
