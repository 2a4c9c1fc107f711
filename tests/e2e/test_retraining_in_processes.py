"""The retraining loop, whose trainings run in two processes."""

from pathlib import Path

import pytest
from equal_trainings import assert_equal_training
from mlflow_runs import numbers_of
from retraining_runs import aliases, retrained, retraining, rows_of

from tasks.config import RetrainAdapterConfig
from tasks.records import Outcome, RetrainedRecord

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_a_loop_in_two_processes_is_that_of_one(tiny_base: Path, tmp_path: Path) -> None:
    """Two rounds, the second of which continues the champion: equal adapters and decisions.

    The second learns nonsense, which is not promoted.
    """

    def config(name: str, number: int, launch: dict[str, object]) -> RetrainAdapterConfig:
        right = number == 1
        train = rows_of(tmp_path / f"wave-{number}.jsonl", range(24), right=right)
        return retraining(
            tiny_base,
            tmp_path,
            name,
            data={"train": str(train)},
            registry={"continue_champion": True},
            launch=launch,
        )

    def rounds(name: str, launch: dict[str, object]) -> list[RetrainedRecord]:
        return [retrained(config(name, number, launch)) for number in (1, 2)]

    alone = rounds("one-process", {})
    both = rounds("two-processes", {"num_processes": 2})
    assert aliases(config("two-processes", 1, {}))["champion"] == 1
    assert [one.decision.outcome for one in both] == [Outcome.PROMOTE, Outcome.REJECT]
    for one, two in zip(alone, both, strict=True):
        assert one.report
        assert two.report
        assert_equal_training(one.report.trained, two.report.trained)
        assert two.decision.outcome is one.decision.outcome
        assert one.evaluated
        assert two.evaluated
        for ours, theirs in zip(two.evaluated.models, one.evaluated.models, strict=True):
            assert ours.scores["loss"] == pytest.approx(theirs.scores["loss"], rel=1e-4)
        assert two.run
        assert numbers_of(two.run)["train/processes"] == 2
    assert both[1].report
    assert both[1].report.trained.injected.source_logit_difference == 0
