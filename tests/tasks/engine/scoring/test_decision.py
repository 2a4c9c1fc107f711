"""The decision's rule: what must hold for all scores, and each outcome's sentence."""

import random
from collections.abc import Sequence

import pytest

from tasks.config import AnswerKind, DecisionSettings
from tasks.engine.scoring.decision import decide
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.records import DecisionRecord, HarnessModel, HarnessRecord, HarnessScore, Outcome

METRICS = ("exact_match", "token_f1", "loss", "macro_f1")
SEEDS = range(10)


def scores(
    hits: Sequence[float], nll: Sequence[float] | None = None, labels: str = "ab"
) -> ModelScores:
    """Return a model that answers these rows right, or by a share, or not."""
    expected = [labels[row % len(labels)] for row in range(len(hits))]
    rows = [
        RowScores(
            answer=expected[row] if hit >= 1 else "c",
            nll=nll[row] if nll else 2 - hit,
            num_tokens=1 + row % 3,
            metrics={"exact_match": float(hit >= 1), "token_f1": hit, "accuracy": float(hit >= 1)},
        )
        for row, hit in enumerate(hits)
    ]
    return ModelScores(AnswerKind.LABELS, expected, rows)


def drawn(seed: int, skill: float, num_rows: int = 40) -> ModelScores:
    """Draw a model of some skill."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    return scores([float(draw.random() < skill) for _ in range(num_rows)])


def decided(
    incumbent: ModelScores,
    challenger: ModelScores,
    unchanged_since: int | None = None,
    older: tuple[ModelScores, ModelScores] | None = None,
    harness: HarnessRecord | None = None,
    **settings: object,
) -> DecisionRecord:
    """Decide with few bootstrap samples, which take the most of the time."""
    if forgetting := settings.pop("older_settings", None):
        settings["older"] = forgetting
    wanted = DecisionSettings.model_validate({"min_rows": 2, "bootstrap_samples": 100} | settings)
    return decide(
        wanted,
        incumbent,
        challenger,
        incumbent_name="champion",
        older=older,
        harness=harness,
        unchanged_since=unchanged_since,
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_tie_keeps_the_champion(seed: int, metric: str) -> None:
    """Whatever the scores are, a model with the very same ones does not take the place."""
    model = drawn(seed, seed / len(SEEDS))
    decision = decided(model, model, metric=metric)
    assert decision.outcome is Outcome.REJECT
    assert "a tie keeps" in decision.reason


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", SEEDS)
def test_two_models_never_beat_each_other(seed: int, metric: str) -> None:
    """Of two models at most one is promoted over the other, and only one that scores better."""
    one, other = drawn(seed, 0.4), drawn(seed + 1000, 0.8)
    there, back = decided(one, other, metric=metric), decided(other, one, metric=metric)
    assert [there.outcome, back.outcome].count(Outcome.PROMOTE) <= 1
    assert there.difference == pytest.approx(-(back.difference or 0))
    for decision in (there, back):
        assert decision.outcome is not Outcome.PROMOTE or (decision.difference or 0) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_demanding_more_promotes_no_more(seed: int) -> None:
    """A challenger that fails a demand fails every harder one: margin, confidence, guard."""
    one, other = drawn(seed, 0.4), drawn(seed + 1000, 0.75)
    easy = decided(one, other)
    harder = [
        decided(one, other, margin=0.3),
        decided(one, other, confidence=0.999),
        decided(one, other, guards={"loss": 0.0}),
        decided(one, other, min_rows=41),
    ]
    if easy.outcome is not Outcome.PROMOTE:
        assert all(decision.outcome is not Outcome.PROMOTE for decision in harder)
    assert harder[-1].outcome is Outcome.REFUSE


@pytest.mark.parametrize("seed", SEEDS)
def test_the_interval_holds_the_difference(seed: int) -> None:
    """The bootstrap interval lies around the difference that was measured."""
    decision = decided(drawn(seed, 0.3), drawn(seed + 1000, 0.7), confidence=0.99)
    assert decision.interval
    assert decision.interval[0] <= (decision.difference or 0) <= decision.interval[1]


def test_the_interval_is_that_of_pairs() -> None:
    """Rows that differ by the same leave no doubt, however much the rows differ by themselves."""
    shares = [row / 100 for row in range(90)]
    better = scores([share + 0.05 for share in shares])
    decision = decided(scores(shares), better, metric="token_f1")
    assert decision.interval == pytest.approx((0.05, 0.05))
    assert decision.outcome is Outcome.PROMOTE


def test_one_lucky_row_is_not_enough() -> None:
    """A better score whose interval includes zero is rejected as what may be chance."""
    decision = decided(scores([1, 0] * 20), scores([1, 1] + [1, 0] * 19))
    assert decision.outcome is Outcome.REJECT
    assert "may be chance" in decision.reason


def test_fewer_rows_than_demanded_decide_nothing() -> None:
    """However much better, with too few rows the answer is a refusal with both numbers."""
    decision = decided(scores([0] * 20), scores([1] * 20), min_rows=21)
    assert decision.outcome is Outcome.REFUSE
    assert decision.reason == "refused: 20 held-out rows are too few, decision.min_rows is 21"


def test_the_margin_must_be_reached() -> None:
    """A sure gain below the margin is rejected; one that just reaches it is not."""
    before, after = scores([0.0] * 40 + [1] * 60), scores([0.0] * 20 + [1] * 80)
    assert "less than the margin 0.3" in decided(before, after, margin=0.3).reason
    assert decided(before, after, margin=0.2).outcome is Outcome.PROMOTE


def test_a_guard_stops_a_better_challenger() -> None:
    """Better in the deciding metric, but worse in a guarded one than tolerated: rejected."""
    before = scores([0] * 20 + [1] * 20, nll=[1.0] * 40)
    after = scores([1] * 40, nll=[1.5] * 40)
    stopped = decided(before, after, guards={"loss": 0.1})
    assert stopped.outcome is Outcome.REJECT
    assert "guard metric loss went from" in stopped.reason
    assert decided(before, after, guards={"loss": 0.5}).outcome is Outcome.PROMOTE


def test_less_loss_is_better() -> None:
    """Where the loss decides, the lower one wins."""
    low, high = scores([1] * 20, nll=[1.0] * 20), scores([1] * 20, nll=[2.0] * 20)
    assert decided(high, low, metric="loss").outcome is Outcome.PROMOTE
    assert "which is worse" in decided(low, high, metric="loss").reason


def test_a_loss_that_is_no_number_is_not_promoted() -> None:
    """A challenger whose loss is NaN is rejected, and so is one guarded by it."""
    good, broken = scores([0] * 20), scores([1] * 20, nll=[float("nan")] * 20)
    assert decided(good, broken, metric="loss").outcome is Outcome.REJECT
    assert decided(good, broken, guards={"loss": 9}).outcome is Outcome.REJECT


def test_what_is_made_of_the_same_is_not_promoted() -> None:
    """However much better, a forced retraining on unchanged data stays challenger."""
    decision = decided(scores([0] * 40), scores([1] * 40), unchanged_since=3)
    assert decision.outcome is Outcome.REJECT
    assert "version 3 has the same data and configuration" in decision.reason


def test_a_promotion_tells_its_numbers() -> None:
    """The sentence has metric, both scores, rows, gain and interval."""
    decision = decided(scores([0.0] * 40 + [1] * 60), scores([0.0] * 20 + [1] * 80))
    start = "better: exact_match 0.8 against the champion's 0.6 on 100 rows (gain 0.2, 95% inter"
    assert decision.reason.startswith(start)


@pytest.mark.parametrize(("kept", "outcome"), [(36, Outcome.PROMOTE), (35, Outcome.REJECT)])
def test_what_falls_on_older_rows_is_not_promoted(kept: int, outcome: Outcome) -> None:
    """Of 40 older rows the champion knows 38; a twentieth less is tolerated, and no more."""
    settings = {"rows": "older.jsonl", "sha256": "0" * 64, "guards": {"exact_match": 0.05}}
    before, now = ([1.0] * count + [0.0] * (40 - count) for count in (38, kept))
    decision = decided(
        scores([0.0] * 40),
        scores([1.0] * 40),
        older=(scores(before), scores(now)),
        metric="exact_match",
        older_settings=settings,
    )
    assert decision.outcome is outcome, decision.reason
    assert ("exact_match on the older rows went from 0.95" in decision.reason) is (
        outcome is Outcome.REJECT
    )


def test_without_a_champion_there_is_nothing_to_forget() -> None:
    """The older rows are not scored then, and guard nothing."""
    settings = {"rows": "older.jsonl", "sha256": "0" * 64, "guards": {"exact_match": 0.0}}
    decision = decided(scores([0.0] * 40), scores([1.0] * 40), older_settings=settings)
    assert decision.outcome is Outcome.PROMOTE
    assert decision.guards == ()


def of_harness(before: float, now: float, *, higher_is_better: bool | None = True) -> HarnessRecord:
    """Return two models' scores on one task of the harness."""
    models = tuple(
        HarnessModel(
            name=name,
            made_from="",
            tasks=(),
            scores=(
                HarnessScore(
                    task="facts",
                    metric="acc",
                    value=value,
                    stderr=None,
                    higher_is_better=higher_is_better,
                ),
            ),
            warnings=(),
            seconds=1.0,
        )
        for name, value in (("champion", before), ("challenger", now))
    )
    return HarnessRecord(lm_eval_version="0", limit=None, models=models, shown=("facts",))


@pytest.mark.parametrize(
    ("before", "now", "higher_is_better", "holds"),
    [
        (0.8, 0.7, True, True),
        (0.8, 0.69, True, False),
        (3.0, 3.2, False, False),
        (3.0, 2.0, False, True),
        (0.8, 0.9, None, False),
        (0.8, float("nan"), True, False),
    ],
)
def test_a_guard_on_the_harness_stops_what_forgets(
    before: float,
    now: float,
    higher_is_better: bool | None,  # noqa: FBT001 - a case
    holds: bool,  # noqa: FBT001
) -> None:
    """It goes by the task's own direction; a score that says nothing does not hold."""
    decision = decided(
        scores([0] * 20 + [1] * 20),
        scores([1] * 40),
        guards={"facts/acc": 0.1},
        harness=of_harness(before, now, higher_is_better=higher_is_better),
    )
    assert decision.outcome is (Outcome.PROMOTE if holds else Outcome.REJECT)
    said = f"but the guard metric facts/acc went from {before:.4g} to {now:.4g}, and only 0.1 worse"
    assert (said in decision.reason) is not holds
