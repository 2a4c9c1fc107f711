"""Varied rows of about 250 tokens: an invented report, a question about it, an answer.

Generated, so that the workload needs no download; equal seeds give equal rows. The answers take
their facts from the reports, so there is something to learn, and few rows share a prefix.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import phrases


@dataclass(frozen=True)
class _Incident:
    person: str
    place: str
    thing: str
    problem: str
    cause: str
    remedy: str
    day: str
    hour: int
    cost: int

    @property
    def first(self) -> str:
        return self.person.split()[0]


def long_rows(count: int, seed: int, num_asides: int = 5) -> Iterator[tuple[str, str]]:
    """Yield prompts with their answers.

    Args:
        count: number of rows.
        seed: of all random choices.
        num_asides: irrelevant sentences, on average; each adds about a dozen tokens.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(count):
        it = _incident(draw)
        asked = draw.choice(phrases.QUESTIONS).format(thing=it.thing, first=it.first, day=it.day)
        report = _report(it, draw, draw.randint(0, 2 * num_asides))
        yield f"{draw.choice(phrases.OPENINGS)} {report} {asked}", _answer(it, draw)


def _incident(draw: random.Random) -> _Incident:
    return _Incident(
        person=draw.choice(phrases.PEOPLE),
        place=draw.choice(phrases.PLACES),
        thing=draw.choice(phrases.THINGS),
        problem=draw.choice(phrases.PROBLEMS),
        cause=draw.choice(phrases.CAUSES),
        remedy=draw.choice(phrases.REMEDIES),
        day=draw.choice(phrases.DAYS),
        hour=draw.randint(1, 11),
        cost=draw.randint(12, 980),
    )


def _report(it: _Incident, draw: random.Random, num_asides: int) -> str:
    sentences = [
        f"{draw.choice(phrases.WEATHER)} when {it.person} came to {it.place} on {it.day}.",
        f"Shortly after {it.hour} o'clock it turned out that {it.thing} {it.problem}.",
        f"After some searching it was clear that {it.cause}.",
        f"{it.first} {it.remedy}, which cost {it.cost} euros in all.",
    ]
    for _ in range(num_asides):
        sentences.insert(draw.randint(1, len(sentences)), draw.choice(phrases.ASIDES))
    return " ".join(sentences)


def _answer(it: _Incident, draw: random.Random) -> str:
    found = f"{it.person} found that {it.thing} {it.problem}"
    facts = [
        f"On {it.day}, soon after {it.hour} o'clock, {found}.",
        f"The reason was that {it.cause}.",
        f"So {it.first} {it.remedy}.",
        f"That came to {it.cost} euros.",
    ]
    closing = (
        f"Nothing else in {it.place} was affected.",
        f"It is worth checking {it.thing} again next {it.day}.",
        "The rest of the report has no bearing on the matter, and may be left out.",
    )
    return " ".join([*facts, *draw.sample(closing, draw.randint(0, len(closing)))])
