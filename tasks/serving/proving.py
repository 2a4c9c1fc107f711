"""Prove that a server computes what was judged: its base, its adapter, and their answers.

None of it can be seen in a server's list of models. Log-probabilities of given tokens show the
wrong base, an adapter that is not used, and one of that name whose weights are stale. The answers
to the held-out rows show another chat template, too.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tasks.engine.scoring import LESS_IS_BETTER, score_answers
from tasks.records import (
    Probe,
    ReplayRow,
    ServedRow,
    ServingOutcome,
    ServingReference,
)
from tasks.serving.server import Server

LOG_PROBABILITY_TOLERANCE = 0.05
"""Nats per token. The same weights in another type, by other kernels, differ by a tenth of it."""
METRIC_TOLERANCE = 0.02
_SHARE_OF_EFFECT = 0.1
"""Of the difference that the adapter makes: an adapter of much effect is rounded more, too."""
_TELLING = 2 * LOG_PROBABILITY_TOLERANCE
"""The least effect of an adapter by which it is told from its base."""
_IN_FLIGHT = 8
"""Rows answered at once."""
_SHOWN_ROWS = 10


class Failure(NamedTuple):
    """What a server computes otherwise."""

    outcome: ServingOutcome
    reason: str


class Replay(NamedTuple):
    """The held-out rows as a server answers them."""

    rows: tuple[ServedRow, ...]
    metric: str
    judged: float
    served: float

    @property
    def differing(self) -> tuple[ServedRow, ...]:
        """The rows whose answers differ."""
        return tuple(one for one in self.rows if one.differs)


def wrong_base(server: Server, base: str, reference: ServingReference) -> Failure | None:
    """Return why a server's base is not the one that the adapter was judged on; None if it is.

    Raises:
        PassingError: the server can't be reached.
    """
    for probe in reference.fixed:
        found = server.log_probability(base, probe)
        if found is None or abs(found - probe.base) > LOG_PROBABILITY_TOLERANCE:
            there = "has not all of the tokens of" if found is None else f"gives {found:.3f} to"
            return Failure(
                ServingOutcome.WRONG_BASE,
                f"the server's base {base} is not the one that the adapter was judged on: it "
                f"{there} a fixed text, which has {probe.base:.3f} nats per token here "
                f"(tolerated: {LOG_PROBABILITY_TOLERANCE:g}); serve the base of the adapter, in "
                "the same revision",
            )
    return None


def wrong_adapter(server: Server, name: str, reference: ServingReference) -> Failure | None:
    """Return why a server does not compute the adapter that was judged; None if it does.

    Raises:
        PassingError: the server can't be reached.
    """
    probes = (*reference.held_out, *reference.fixed)
    found = [(one, server.log_probability(name, one)) for one in probes]
    telling = [(one, served) for one, served in found if abs(one.adapter - one.base) > _TELLING]
    if telling and all(_is_of_base(one, served) for one, served in telling):
        worst = max(telling, key=lambda pair: abs(pair[0].adapter - pair[0].base))
        return Failure(
            ServingOutcome.IGNORED,
            f"the server lists {name} and ignores it: its log-probabilities are the base's "
            f"({_shown(*worst)}); look for warnings about the adapter in the server's log",
        )
    for one, served in found:
        if served is None or abs(served - one.adapter) > _tolerated(one):
            return Failure(
                ServingOutcome.ANOTHER_ADAPTER,
                f"the server computes another adapter as {name} than the one that was judged "
                f"({_shown(one, served)}); unload it there, or restart the server, and publish "
                "again",
            )
    return None


def replay(
    server: Server,
    name: str,
    reference: ServingReference,
    metric: str,
    on_progress: Callable[[], None] | None = None,
) -> Replay:
    """Have a server answer the held-out rows, and score its answers beside those that were judged.

    Args:
        server: the server.
        name: of the adapter there.
        reference: the rows with the answers that were judged.
        metric: that decided. In place of one that answers alone don't have (a loss, or one of the
            user's own), `exact_match` is compared.
        on_progress: called after each answer.

    Raises:
        UserError: the server refuses a row.
        PassingError: it can't be reached.
    """

    def served(row: ReplayRow) -> ServedRow:
        given = server.answer(name, row, reference)
        if on_progress:
            on_progress()
        text = given.text.strip().removeprefix(row.opening)
        return ServedRow(
            row=row.row,
            question=row.question,
            expected=row.expected,
            judged=row.answer,
            served=text,
            has_other_prompt=given.num_prompt_tokens not in (0, row.num_prompt_tokens),
        )

    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        rows = list(pool.map(served, reference.rows))
    judged = score_answers(reference, [one.judged for one in rows])
    now = score_answers(reference, [one.served for one in rows])
    known = metric in judged.all() and metric not in LESS_IS_BETTER
    chosen = metric if known else "exact_match"
    return Replay(tuple(rows), chosen, judged.of(chosen), now.of(chosen))


def otherwise(found: Replay) -> Failure | None:
    """Return in what a replay differs from what was judged; None if it doesn't."""
    others = [one.row for one in found.rows if one.has_other_prompt]
    if others:
        return Failure(
            ServingOutcome.DIFFERS,
            f"the server renders the prompts of {len(others)} of {len(found.rows)} held-out rows "
            f"to other tokens ({_listed(others)}): it has another chat template; start it with "
            "the adapter's, as `adapterflow serve` does",
        )
    if abs(found.served - found.judged) > METRIC_TOLERANCE:
        return Failure(ServingOutcome.DIFFERS, f"{summary(found)} (tolerated: {METRIC_TOLERANCE})")
    return None


def summary(found: Replay) -> str:
    """Describe a replay in one line."""
    differing = [one.row for one in found.differing]
    differ = "answer differs" if len(differing) == 1 else "answers differ"
    rows = f"{len(differing)} {differ} ({_listed(differing)})" if differing else "all equal"
    return (
        f"{found.metric} {found.served:.4g} on {len(found.rows)} held-out rows, judged: "
        f"{found.judged:.4g}; {rows}"
    )


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS]))
    return f"row{'s' * (len(rows) > 1)} {shown}{', …' * (len(rows) > _SHOWN_ROWS)}"


def _is_of_base(probe: Probe, served: float | None) -> bool:
    return served is not None and abs(served - probe.base) < abs(served - probe.adapter)


def _tolerated(probe: Probe) -> float:
    return max(LOG_PROBABILITY_TOLERANCE, _SHARE_OF_EFFECT * abs(probe.adapter - probe.base))


def _shown(probe: Probe, served: float | None) -> str:
    there = "none" if served is None else f"{served:.3f}"
    return (
        f"{there} nats per token there, {probe.adapter:.3f} by the adapter and {probe.base:.3f} "
        "by the base here"
    )
