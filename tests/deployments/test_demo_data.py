"""The demo data: reproducible, well formed, and honestly split."""

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

DEMO = Path(__file__).parents[2] / "deployments" / "demo"
SPLITS = ("train", "eval")
generator = SimpleNamespace(**runpy.run_path(str(DEMO / "generate_tickets.py")))
VOCABULARY: dict[str, dict[str, tuple[str, ...]]] = {
    "intent": generator.INTENTS,
    "product": generator.PRODUCTS,
    "urgency": generator.URGENCIES,
}
KEY_WORDS = [word for words in VOCABULARY.values() for group in words.values() for word in group]
Pair = tuple[str, dict[str, str | None]]


def pairs(split: str) -> list[Pair]:
    """Return each message of a split with its parsed ticket."""
    lines = (DEMO / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    return [(message, json.loads(answer)) for _, message, answer in chats]


def spoken(words: list[str] | tuple[str, ...], message: str) -> set[str]:
    """Return those of the words that stand in the message."""
    return {word for word in words if re.search(rf"\b{word}\b", message)}


def frames(message: str) -> list[str]:
    """Return the pieces of a message, blank where key words and order numbers stood."""
    gaps = rf"\b({'|'.join(KEY_WORDS)}|(?:[A-Z]{{2}}-)?\d{{5,7}})\b"
    return re.split(r"(?<=[.,?!:]) ", re.sub(gaps, "_", message))


def test_generator_reproduces_the_files(tmp_path: Path) -> None:
    """Running the generator again gives the same bytes."""
    generator.write_splits(tmp_path)
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_splits_have_their_sizes() -> None:
    """There are 320 messages to train on and 120 to evaluate on."""
    assert [len(pairs(split)) for split in SPLITS] == [320, 120]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_a_ticket(split: str) -> None:
    """Each answer has exactly the four keys, in order, and labels from the closed sets."""
    for _, ticket in pairs(split):
        assert list(ticket) == [*VOCABULARY, "order_number"]
        assert all(ticket[field] in labels for field, labels in VOCABULARY.items())


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced(split: str) -> None:
    """No label of a field is used more than once oftener than another."""
    tickets = [ticket for _, ticket in pairs(split)]
    for field, labels in VOCABULARY.items():
        counts = [sum(ticket[field] == label for ticket in tickets) for label in labels]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_messages_decide_their_labels(split: str) -> None:
    """Each message speaks one key word per field, and it is one of the right label's."""
    for message, ticket in pairs(split):
        for field, labels in VOCABULARY.items():
            found = [label for label, words in labels.items() if spoken(words, message)]
            assert found == [ticket[field]], message


@pytest.mark.parametrize("split", SPLITS)
def test_order_numbers_are_copied(split: str) -> None:
    """The answer's order number stands in the message; without one, no digit does."""
    for message, ticket in pairs(split):
        numbers = re.findall(r"(?:[A-Z]{2}-)?\d+", message)
        assert numbers == ([] if ticket["order_number"] is None else [ticket["order_number"]])


def test_order_numbers_are_held_out() -> None:
    """No order number is used twice, within a split or across the two."""
    numbers = [ticket["order_number"] for split in SPLITS for _, ticket in pairs(split)]
    given = [number for number in numbers if number]
    assert len(given) == len(set(given)) == 0.7 * len(numbers)


def test_frames_are_held_out() -> None:
    """Nothing an evaluation message says around key words and numbers occurs in training."""
    seen, held_out = (
        {frame for message, _ in pairs(split) for frame in frames(message)} for split in SPLITS
    )
    assert not seen & held_out


def test_key_words_of_evaluation_occur_in_training() -> None:
    """A model is never asked for a label by a word it did not learn."""
    learned, asked = (
        {word for message, _ in pairs(split) for word in spoken(KEY_WORDS, message)}
        for split in SPLITS
    )
    assert asked <= learned == set(KEY_WORDS)
