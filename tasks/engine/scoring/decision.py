"""Decide whether a challenger is better than the incumbent, by one rule and without side effects.

The confidence interval of the difference is a percentile interval of a paired bootstrap: rows are
resampled together with both models' results on them (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13; for two systems on one test set, Koehn 2004, section 4,
https://aclanthology.org/W04-3250).
"""

import math
from collections.abc import Iterator

from tasks.config import DecisionSettings
from tasks.engine.scoring.model_scores import LESS_IS_BETTER, ModelScores
from tasks.records import CHALLENGER, DecisionRecord, GuardRecord, HarnessRecord, Outcome

_ROUNDING = 1e-9
"""Differences up to this are rounding errors: 0.3 - 0.2 is less than a margin of 0.1."""


def decide(  # noqa: PLR0913 - what a decision is a function of
    settings: DecisionSettings,
    incumbent: ModelScores,
    challenger: ModelScores,
    *,
    incumbent_name: str,
    older: tuple[ModelScores, ModelScores] | None = None,
    harness: HarnessRecord | None = None,
    unchanged_since: int | None = None,
    seed: int = 0,
) -> DecisionRecord:
    """Decide whether the challenger may replace the incumbent.

    It does if it is better by at least the margin, the confidence interval of the difference is
    above zero, no guard metric is worse by more than tolerated, there are enough rows, and no
    earlier version has the same data and configuration. A tie keeps the incumbent.

    Args:
        settings: metric, margin, guards, least number of rows, confidence level.
        incumbent: the scores of the champion, or of the base.
        challenger: the scores of the challenger on the same rows.
        incumbent_name: what the reason calls the incumbent.
        older: the scores of champion and challenger on the older rows, if there are any.
        harness: the scores of all models on lm-evaluation-harness, if there are any.
        unchanged_since: the version with the same data and configuration, if there is one.
        seed: the seed of the bootstrap.
    """
    metric, num_rows = settings.metric, len(challenger)
    if num_rows < settings.min_rows:
        return DecisionRecord(
            outcome=Outcome.REFUSE,
            reason=(
                f"refused: {num_rows} held-out rows are too few, decision.min_rows is "
                f"{settings.min_rows}"
            ),
            metric=metric,
            num_rows=num_rows,
        )
    before, now = incumbent.of(metric), challenger.of(metric)
    guards = (
        *_guards(settings, incumbent, challenger, older),
        *_harness_guards(settings, harness, incumbent_name),
    )
    difference = _gain(metric, before, now)
    interval = _interval(settings, incumbent, challenger, seed)
    problem = _problem(settings, difference, interval, guards, unchanged_since)
    outcome = Outcome.REJECT if problem else Outcome.PROMOTE
    numbers = (
        f"{metric} {now:.4g} against the {incumbent_name}'s {before:.4g} on {num_rows} rows (gain "
        f"{difference:.4g}, {settings.confidence:.0%} interval {interval[0]:.4g} to "
        f"{interval[1]:.4g})"
    )
    return DecisionRecord(
        outcome=outcome,
        # Nothing is promoted yet: that it was is said once it is done.
        reason=f"rejected: {numbers}, {problem}" if problem else f"better: {numbers}",
        compared=numbers,
        metric=metric,
        num_rows=num_rows,
        incumbent=before,
        challenger=now,
        difference=difference,
        interval=interval,
        guards=guards,
    )


def _problem(
    settings: DecisionSettings,
    difference: float,
    interval: tuple[float, float],
    guards: tuple[GuardRecord, ...],
    unchanged_since: int | None,
) -> str | None:
    """Return the first reason against a promotion; None if there is none."""
    numbers = (difference, *interval)
    objections = [
        (not all(map(math.isfinite, numbers)), "which is not finite"),
        (
            unchanged_since is not None,
            f"and version {unchanged_since} has the same data and configuration",
        ),
        (abs(difference) <= _ROUNDING, "and a tie keeps the incumbent"),
        (difference < 0, "which is worse"),
        (difference < settings.margin - _ROUNDING, f"less than the margin {settings.margin:g}"),
        (interval[0] <= 0, "and the interval includes zero: it may be chance"),
        *((not guard.holds, _broken(guard)) for guard in guards),
    ]
    return next((text for applies, text in objections if applies), None)


def _broken(guard: GuardRecord) -> str:
    return (
        f"but the guard metric {guard.metric}{guard.where} went from {guard.incumbent:.4g} to "
        f"{guard.challenger:.4g}, and only {guard.tolerated:g} worse is tolerated"
    )


def _guards(
    settings: DecisionSettings,
    incumbent: ModelScores,
    challenger: ModelScores,
    older: tuple[ModelScores, ModelScores] | None,
) -> tuple[GuardRecord, ...]:
    """Return the guards on rows: on those that decide, and on the older ones."""
    found = [
        _guard(name, tolerated, incumbent.of(name), challenger.of(name))
        for name, tolerated in settings.row_guards.items()
    ]
    if settings.older and older:
        before, now = older
        found += [
            _guard(name, tolerated, before.of(name), now.of(name), is_on_older_rows=True)
            for name, tolerated in settings.older.guards.items()
        ]
    return tuple(found)


def _harness_guards(
    settings: DecisionSettings, harness: HarnessRecord | None, incumbent_name: str
) -> Iterator[GuardRecord]:
    """Yield the guards on scores of the harness."""
    for name, tolerated in settings.harness_guards.items():
        before = harness.score(incumbent_name, name) if harness else None
        now = harness.score(CHALLENGER, name) if harness else None
        found = [math.nan if one is None else one.value for one in (before, now)]
        gain = found[1] - found[0]
        is_better_when_higher = now.higher_is_better if now else None
        # A score that there is not, and one of unknown direction, is no evidence.
        holds = is_better_when_higher is not None and (
            (gain if is_better_when_higher else -gain) >= -tolerated - _ROUNDING
        )
        yield GuardRecord(
            metric=name, incumbent=found[0], challenger=found[1], tolerated=tolerated, holds=holds
        )


def _guard(
    metric: str, tolerated: float, before: float, now: float, *, is_on_older_rows: bool = False
) -> GuardRecord:
    # Written so that it is False for NaN.
    holds = _gain(metric, before, now) >= -tolerated - _ROUNDING
    return GuardRecord(
        metric=metric,
        is_on_older_rows=is_on_older_rows,
        incumbent=before,
        challenger=now,
        tolerated=tolerated,
        holds=holds,
    )


def _gain(metric: str, before: float, now: float) -> float:
    """Return by how much a metric improved; positive is better, also for losses."""
    return before - now if metric in LESS_IS_BETTER else now - before


def _interval(
    settings: DecisionSettings, incumbent: ModelScores, challenger: ModelScores, seed: int
) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    metric, rows = settings.metric, np.arange(len(challenger))

    def gain(drawn: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> float:
        return _gain(metric, incumbent.of(metric, drawn), challenger.of(metric, drawn))

    found = bootstrap(
        (rows,),
        gain,
        vectorized=False,
        n_resamples=settings.bootstrap_samples,
        confidence_level=settings.confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
