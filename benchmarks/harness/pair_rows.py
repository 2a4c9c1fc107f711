"""Pairs of a chosen and a rejected answer, made of the long rows; equal seeds give equal pairs."""

import random
from collections.abc import Iterator
from itertools import pairwise

from benchmarks.harness.long_rows import long_rows

Pair = dict[str, list[dict[str, str]]]

_REQUESTS = (
    "What happened lately?",
    "Tell me the rest of it.",
    "And what came of it in the end?",
    "Write it down for the log book, please.",
    "Go on, from the beginning.",
)
_MAX_TURNS = 2
"""Exchanges before the last request, at most."""


def reports(count: int, seed: int) -> Iterator[Pair]:
    """Yield pairs whose prompt is longer than their answers: a report, and a question about it.

    The rejected answer is about another report.
    """
    for (prompt, right), (_, wrong) in pairwise(long_rows(count + 1, seed, num_asides=8)):
        yield _pair([("user", prompt)], right, wrong)


def conversations(count: int, seed: int) -> Iterator[Pair]:
    """Yield pairs of free conversations, whose last answers are often longer than what led to them.

    The chosen answer has the facts in order, the rejected one wanders.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    told = [answer for _, answer in long_rows(4 * count, seed)]
    wandering = [prompt for prompt, _ in long_rows(count, seed + 1)]
    for number, wrong in enumerate(wandering):
        first, second, *earlier = told[4 * number : 4 * number + 4]
        turns: list[tuple[str, str]] = []
        for answer in earlier[: draw.randint(0, _MAX_TURNS)]:
            turns += [("user", draw.choice(_REQUESTS)), ("assistant", answer)]
        turns.append(("user", draw.choice(_REQUESTS)))
        yield _pair(turns, f"{first} {second}", wrong)


def _pair(turns: list[tuple[str, str]], chosen: str, rejected: str) -> Pair:
    return {
        "prompt": [{"role": role, "content": content} for role, content in turns],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
