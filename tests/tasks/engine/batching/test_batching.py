"""However rows become batches, the model sees each row as if it were alone."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from drawn_rows import adapted_llama, draw_rows, row
from torch.nn.functional import cross_entropy

from tasks.engine.batching.batches import Batch, Batches, PackedBatches, PaddedBatches, as_items
from tasks.engine.batching.loss import labeled_logits, summed_loss
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow, shared_prefix_length
from tasks.engine.kernels.row_attention import attending_by_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0
ROWS = draw_rows((7, 1), (4, 4), (2, 5), (1, 3))
"""The longest first, as a batch has them."""
WHOLE, CUT = 1000, 34
WAYS = {
    f"{name}, {size} tokens": make(size)  # type: ignore[no-untyped-call]
    for size in (WHOLE, CUT)
    for name, make in {
        "padded": lambda size: PaddedBatches(PAD, size),
        "packed": lambda size: PackedBatches(0, size),
        "shared prefix": lambda size: PackedBatches(12, size),
    }.items()
}


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers."""
    return adapted_llama(tiny_base)


def alone(model: "PreTrainedModel", one: TokenizedRow) -> torch.Tensor:
    """Return the labelled positions' logits of a row alone, by nothing but `input_ids`."""
    logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
    return cast("torch.Tensor", logits[torch.tensor(one.labels[1:]) != IGNORED])


def taking(model: "PreTrainedModel", batches: Batches) -> AbstractContextManager[None]:
    """Let the model take the batches."""
    return attending_by_row(model) if isinstance(batches, PackedBatches) else nullcontext()


def by_row(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Return the labelled positions' logits of a batch, row after row."""
    return torch.cat(
        [
            labeled_logits(model, micro_batch)[micro_batch["labels"] != IGNORED]
            for micro_batch in batch["micro_batches"]
        ]
    )


def loss_of(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Return the summed loss of a batch's micro-batches."""
    return torch.stack(
        [summed_loss(model, micro_batch) for micro_batch in batch["micro_batches"]]
    ).sum()


@pytest.mark.parametrize("batches", WAYS.values(), ids=WAYS)
def test_batch_gives_each_row_its_own_logits_and_loss(
    model: "PreTrainedModel", batches: Batches
) -> None:
    """Neither padding nor a neighbour changes a row's logits or its share of the loss."""
    batch = batches(as_items(ROWS))

    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in ROWS])
        with taking(model, batches):
            given, loss = by_row(model, batch), loss_of(model, batch)

    labels = [label for one in ROWS for label in one.labels[1:] if label != IGNORED]
    assert torch.allclose(given, expected, atol=1e-5)
    assert batch["labels"][batch["labels"] != IGNORED].tolist() == labels
    assert batch["shift_labels"] is batch["labels"]
    whole = cross_entropy(expected, torch.tensor(labels), reduction="sum")
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("batches", WAYS.values(), ids=WAYS)
def test_loss_is_that_of_trainers_own_way(model: "PreTrainedModel", batches: Batches) -> None:
    """Computing only the labelled positions gives transformers' loss over all positions."""
    with torch.no_grad():
        means = [
            model(input_ids=torch.tensor([r.input_ids]), labels=torch.tensor([r.labels])).loss
            for r in ROWS
        ]
        with taking(model, batches):
            ours = loss_of(model, batches(as_items(ROWS)))

    sums = [float(mean) * one.num_trained_tokens for mean, one in zip(means, ROWS, strict=True)]
    assert ours.item() == pytest.approx(sum(sums), rel=1e-5)


@pytest.mark.parametrize("batches", WAYS.values(), ids=WAYS)
def test_masked_tokens_do_not_move_the_loss(model: "PreTrainedModel", batches: Batches) -> None:
    """A token without a label after the answer counts for nothing; one with a label counts."""
    longer = [TokenizedRow([*r.input_ids, 9], [*r.labels, IGNORED]) for r in ROWS]
    labelled = [TokenizedRow([*r.input_ids, 9], [*r.labels, 9]) for r in ROWS]

    with torch.no_grad(), taking(model, batches):
        loss, same, more = (
            loss_of(model, batches(as_items(rows))).item() for rows in (ROWS, longer, labelled)
        )

    assert same == pytest.approx(loss, rel=1e-5)
    assert more > loss + 1


@pytest.mark.parametrize("batches", WAYS.values(), ids=WAYS)
def test_no_micro_batch_computes_more_than_it_may(batches: Batches) -> None:
    """Every row comes once, in micro-batches that hold no more tokens than allowed, or one row."""
    limit = CUT if batches in list(WAYS.values())[3:] else WHOLE
    batch = batches(as_items(ROWS))

    assert all(micro_batch["input_ids"].numel() <= limit for micro_batch in batch["micro_batches"])
    assert (len(batch["micro_batches"]) > 1) == (limit == CUT)
    labels = [
        micro_batch["labels"][micro_batch["labels"] != IGNORED]
        for micro_batch in batch["micro_batches"]
    ]
    assert torch.cat(labels).tolist() == [x for r in ROWS for x in r.labels if x != IGNORED]


def test_a_row_longer_than_a_micro_batch_is_a_micro_batch() -> None:
    """Nothing is lost where one row alone has more tokens than a micro-batch may."""
    micro_batches = PackedBatches(0, 5)(as_items(ROWS))["micro_batches"]
    lengths = [micro_batch["input_ids"].numel() for micro_batch in micro_batches]
    assert lengths == [len(one.input_ids) - 1 for one in ROWS]


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
    [batch] = PaddedBatches(PAD, WHOLE)(as_items(ROWS))["micro_batches"]
    whole = cast("PreTrainedModel", _WholeLogits(model))

    with torch.no_grad():
        kept, picked = labeled_logits(model, batch), labeled_logits(whole, batch)

    assert kept.shape[1] == picked.shape[1] == batch["labels"].shape[1] < 18
    present = batch["labels"] != IGNORED
    assert torch.allclose(kept[present], picked[present], atol=1e-5)


def test_padding_is_on_the_left_and_unseen() -> None:
    """Two rows as a batch, written out."""
    rows = as_items([row([5, 6], [7]), row([5], [8, 9, 4])])
    [micro_batch] = PaddedBatches(PAD, WHOLE)(rows)["micro_batches"]

    assert {name: tensor.tolist() for name, tensor in micro_batch.items()} == {
        "input_ids": [[5, 8, 9], [0, 5, 6]],
        "attention_mask": [[1, 1, 1], [0, 1, 1]],
        "position_ids": [[0, 1, 2], [0, 0, 1]],
        "logits_to_keep": [0, 1, 2],
        "labels": [[8, 9, 4], [-100, -100, 7]],
    }


def test_rows_follow_one_another_after_their_prefix() -> None:
    """Two rows after their prefix of two tokens, written out."""
    rows = as_items([row([5, 6, 1], [7]), row([5, 6, 2], [8, 9])])
    [micro_batch] = PackedBatches(2, WHOLE)(rows)["micro_batches"]

    assert {name: tensor.tolist() for name, tensor in micro_batch.items()} == {
        "input_ids": [[5, 6, 2, 8, 1]],
        "attention_mask": [[[[2, 4, 5], [-1, 0, 0]]]],
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
    shared = PackedBatches(shared_prefix_length(rows), WHOLE)(as_items(rows))

    with torch.no_grad():
        expected = torch.cat([alone(model, one) for one in rows])
        with attending_by_row(model):
            assert torch.allclose(by_row(model, shared), expected, atol=1e-5)
