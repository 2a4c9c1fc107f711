"""What is known of a retraining's end before anything is trained."""

import pytest

from tasks.check_retraining import _same
from tasks.comparison_records import Outcome, VersionRecord
from tasks.tracking import OUTCOME_TAG


def version(number: int, **tags: str) -> VersionRecord:
    """Give a version of a registered model."""
    return VersionRecord(
        name="sums", version=number, created_ms=0, run_id=None, source="", aliases=(), tags=tags
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_verdict_makes_a_retraining_superfluous(outcome: Outcome) -> None:
    """Overtaken, or put to a person who did not answer, a challenger is no reason to skip."""
    made = version(1, data="x", **{OUTCOME_TAG: outcome.value})
    is_open = outcome in (Outcome.OUTDATED, Outcome.UNANSWERED)
    assert _same([made], {"data": "x"}) == (None if is_open else 1)
    assert _same([made], {"data": "y"}) is None
    assert _same([version(1, data="x")], {"data": "x"}) is None
