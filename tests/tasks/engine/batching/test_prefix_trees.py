"""What rows of a conversation share is computed once, and nothing that is learned depends on it."""

from collections import Counter
from collections.abc import Iterator

import pytest
from drawn_rows import draw_conversations
from exact_training import assert_same, attention_of_lengths, made, ours, plain

from tasks.engine.batching import loss
from tasks.engine.batching.batches import Batch, PackedBatches, as_items, num_inputs
from tasks.engine.batching.prefix_trees import num_shared
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.engine.kernels import kernel_attention, row_attention
from tasks.engine.kernels.segments import Segments

WHOLE = 10**6
TURNS = draw_conversations(3, 1, 4, 2)
LONGEST = max(len(row.input_ids) for row in TURNS)


def talk(*rows: tuple[list[int], list[int]]) -> list[TokenizedRow]:
    """Make rows of one conversation from their tokens, and from those that are trained on."""
    return [
        TokenizedRow(ids, [token if token in trained else IGNORED for token in ids], 0)
        for ids, trained in rows
    ]


CONVERSATIONS = {
    "several": TURNS,
    "rewritten answers": talk(([1, 2, 3, 4], [3, 4]), ([1, 2, 5, 6, 7], [6, 7])),
    "an answer within a context": talk(([1, 2, 3, 4], [3, 4]), ([1, 2, 3, 4, 5, 6], [6])),
    "an answer that goes on otherwise": talk(([1, 2, 3, 4], [3, 4]), ([1, 2, 3, 5, 6], [5, 6])),
    "one answer that both train on": talk(([1, 2, 3, 4], [3, 4]), ([1, 2, 3, 4, 5], [3, 5])),
    "two answers to one question": talk(([1, 2, 3], [3]), ([1, 2, 4], [4]), ([1, 2, 3], [3])),
    "nothing in common": talk(([1, 2, 3], [3]), ([4, 2, 3], [3])),
}


def learned(batch: Batch) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield each label of a batch, and the tokens that it is predicted from."""
    for micro_batch in batch["micro_batches"]:
        segments = Segments.in_mask(micro_batch["attention_mask"])
        ids = micro_batch["input_ids"][0].tolist()
        seen = {
            at: [*context, *range(span.start, at + 1)]
            for span, context in zip(segments.spans(), segments.contexts(), strict=True)
            for at in span
        }
        assert micro_batch["position_ids"][0].tolist() == [len(seen[at]) - 1 for at in sorted(seen)]
        labels = micro_batch["labels"][0].tolist()
        for at, label in zip(micro_batch["logits_to_keep"].tolist(), labels, strict=True):
            yield tuple(ids[one] for one in seen[at]), label


@pytest.mark.parametrize("max_tokens", [WHOLE, LONGEST + 6, 1])
@pytest.mark.parametrize("rows", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_each_label_counts_once_behind_its_own_tokens(
    rows: list[TokenizedRow], max_tokens: int
) -> None:
    """Whatever is shared, a row's label is predicted from all tokens before it, and only once."""
    expected = Counter(
        (tuple(row.input_ids[:at]), label)
        for row in rows
        for at, label in enumerate(row.labels)
        if label != IGNORED
    )
    assert Counter(learned(PackedBatches(0, max_tokens)(as_items(rows)))) == expected


@pytest.mark.parametrize("prefix_length", [0, 12])
def test_each_prefix_is_computed_once(prefix_length: int) -> None:
    """A sequence has as many positions as its conversations have different prefixes."""
    [micro_batch] = PackedBatches(prefix_length, WHOLE)(as_items(TURNS))["micro_batches"]
    prefixes = {
        (row.conversation if length > prefix_length else None, *row.input_ids[:length])
        for row in as_rows(TURNS)
        for length in range(1, len(row.input_ids) + 1)
    }
    assert micro_batch["input_ids"].numel() == len(prefixes)


def as_rows(rows: list[TokenizedRow]) -> list[TokenizedRow]:
    """Return the rows without the tokens that no label depends on."""
    ends = [num_inputs(item) for item in as_items(rows)]
    return [
        TokenizedRow(row.input_ids[:end], row.labels[:end], row.conversation)
        for row, end in zip(rows, ends, strict=True)
    ]


def test_a_conversation_stays_in_a_micro_batch_that_holds_it() -> None:
    """A micro-batch takes no more than it may, and repeats a prefix only if it has to."""

    def num_computed(max_tokens: int) -> list[int]:
        batch = PackedBatches(12, max_tokens)(as_items(TURNS))
        return [one["input_ids"].numel() for one in batch["micro_batches"]]

    [whole] = num_computed(WHOLE)
    halves = num_computed(whole - 1)
    assert (len(halves), sum(halves)) == (2, whole + 12)
    quarters = num_computed(LONGEST)
    assert max(quarters) <= LONGEST
    assert sum(quarters) > whole + 12 * (len(quarters) - 1)


def test_two_turns_as_a_sequence() -> None:
    """A common prefix, what two turns share, and what each has of its own, written out."""
    rows = talk(([1, 2, 3, 4, 5], [4, 5]), ([1, 2, 3, 6, 7, 8], [8]))
    [micro_batch] = PackedBatches(2, WHOLE)(as_items(rows))["micro_batches"]

    assert {name: tensor.tolist() for name, tensor in micro_batch.items()} == {
        "input_ids": [[1, 2, 3, 6, 7, 4]],
        "attention_mask": [[[[2, 3, 5, 6], [-1, 0, 1, 1]]]],
        "position_ids": [[0, 1, 2, 3, 4, 3]],
        "logits_to_keep": [4, 2, 5],
        "labels": [[8, 4, 5]],
    }


def test_packed_rows_share_nothing() -> None:
    """Where sharing is not wanted, rows of a conversation are rows like others."""
    [apart] = PackedBatches(0, WHOLE, by_conversation=False)(as_items(TURNS))["micro_batches"]
    assert apart["input_ids"].numel() == sum(num_inputs(item) for item in as_items(TURNS))


def test_a_row_shares_with_the_turn_before() -> None:
    """The tokens that the forecast does not count again are those that are not computed again."""
    rows = as_rows(TURNS)
    [micro_batch] = PackedBatches(0, WHOLE)(as_items(TURNS))["micro_batches"]
    own = sum(len(row.input_ids) for row in rows) - num_shared(rows).sum()
    assert micro_batch["input_ids"].numel() == own
    assert num_shared(rows)[[0, 3, 4, 8]].tolist() == [0, 0, 0, 0]


WAYS = {
    "shared": (PackedBatches(0, WHOLE), {}),
    "behind a common prefix": (PackedBatches(12, WHOLE), {}),
    "split over micro-batches": (PackedBatches(12, LONGEST), {}),
    "in chunks, with our layers": (PackedBatches(12, LONGEST), {"chunks": True, "layers": True}),
}


@pytest.mark.parametrize("on_gpu", [False, True], ids=["tiled", "by the kernel's stand-in"])
@pytest.mark.parametrize(("batches", "how"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_shared_turns_give_padded_rows_loss_and_gradients(
    architecture: str,
    batches: PackedBatches,
    how: dict[str, bool],
    on_gpu: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within 1e-5 in float32, of the loss and of the largest gradient."""
    monkeypatch.setattr(loss, "_CHUNK_LOGITS", 7 * 400)
    if on_gpu:
        monkeypatch.setattr(row_attention, "has_kernel", lambda _: True)
        monkeypatch.setattr(kernel_attention, "varlen_attn", attention_of_lengths)
    model = made(architecture)
    expected = plain(model, TURNS, "right")
    assert_same(ours(model, TURNS, batches, **how), expected, tolerance=1e-5)
