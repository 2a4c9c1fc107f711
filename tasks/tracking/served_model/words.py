"""The words that a token classifier tags: read from a row, and found among a text's tokens."""

from typing import Any

from .request_errors import refused, shown
from .rows import parsed, text_of


def words_of(row: dict[str, Any]) -> list[str]:
    """Return a row's words.

    Raises:
        RequestError: it has none, or they aren't a list of words.
    """
    words = parsed(row.get("tokens"))
    plain = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    if not plain or not words or any(map(str.isspace, "".join(words))):
        raise refused(f"tokens is {shown(words)}; it must be a list of words")
    return [text_of(word, "a token") for word in words]


def first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int | None]:
    """Return each word's first token in a text, as in training; None for a word without one."""
    firsts: list[int | None] = [None] * len(words)
    word, start = 0, 0
    for place, (begins, ends) in enumerate(offsets):
        while word < len(words) and start + len(words[word]) <= begins:
            start += len(words[word]) + 1
            word += 1
        if word < len(words) and start < ends and begins < ends and firsts[word] is None:
            firsts[word] = place
    return firsts


def tags_of(
    labels: list[str], words: list[int | None], numbers: list[int], shares: list[float]
) -> dict[str, Any]:
    """Return the tags of a row's words, and the probability of the least certain one.

    Args:
        labels: the tags by number.
        words: each word's first token.
        numbers: each token's most likely label.
        shares: the labels' probabilities.
    """
    seen = [place for place in words if place is not None]
    tags = ["?" if place is None else labels[numbers[place]] for place in words]
    return {"tags": tags, "probability": min((shares[place] for place in seen), default=0.0)}
