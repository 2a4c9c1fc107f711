"""A training's progress in Prefect: what it says, and that Prefect's absence stops nothing."""

import time
from pathlib import Path

import pytest
from artifacts import artifacts_of
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.durability import training_progress
from tasks.durability.training_progress import KEY, ShownTraining, published_progress


def test_a_point_says_step_loss_speed_and_time_left() -> None:
    """A resumed training counts its speed from where it began; a loss stays until the next."""
    now = [0.0]
    shown = ShownTraining(tokens_per_step=60, clock=lambda: now[0])
    shown.at(40, 100, 2.5)
    now[0] = 20.0
    shown.at(50, 100)
    assert shown.latest.percent == 50
    assert shown.latest.text == "step 50 of 100 · loss 2.5000 · 30 tokens/s · 2 min left"


def test_the_artifact_follows_the_training_and_is_one(prefect_server: None, tmp_path: Path) -> None:
    """It is there while the training runs, and a second attempt goes on with it."""
    seen: list[tuple[object, object]] = []

    def look(flow_run_id: str) -> list[tuple[object, object]]:
        return [(a.data, a.description) for a in artifacts_of(flow_run_id) if a.key == KEY]

    @flow
    def training() -> None:
        from prefect.runtime import flow_run

        with published_progress(60):
            deadline = time.monotonic() + 30
            while not seen and time.monotonic() < deadline:
                seen.extend(look(str(flow_run.get_id())))
        with published_progress(60) as shown:
            shown.at(4, 8, 1.0)
        seen.extend(look(str(flow_run.get_id())))

    training()
    assert seen == [(0, "the training begins"), (50, "step 4 of 8 · loss 1.0000")]


def test_a_training_does_not_wait_for_a_server_that_is_gone(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Prefect the block runs as it would with it, and ends without an error."""
    monkeypatch.setattr(training_progress, "_SECONDS_AT_THE_END", 0.1)

    @flow
    def training() -> float:
        gone = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 8}
        with temporary_settings(gone), published_progress(60) as shown:
            for step in range(1000):
                shown.at(step + 1, 1000, 1.0)
        return shown.latest.percent

    assert training() == 100
