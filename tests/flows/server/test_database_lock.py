"""Who may start a Prefect server on a home's database: runs together, or one `adapterflow up`."""

import os
import threading
from pathlib import Path

import pytest

from flows.server import database_lock
from flows.server.database_lock import exclusive_lock, shared_lock
from tasks.errors import UserError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(database_lock, "_SECONDS_TO_LOOK_AROUND", 0.0)


def test_runs_share_the_database_and_up_has_it_alone() -> None:
    """While any of several runs holds the lock, `up` is refused; then it gets it."""
    first, second = shared_lock(), shared_lock()
    for held in (first, second):
        with pytest.raises(UserError, match="wait until it is done"), exclusive_lock():
            pytest.fail("two servers would start")
        os.close(held)
    with exclusive_lock():
        pass


def test_a_run_waits_for_an_up_that_is_starting(capsys: pytest.CaptureFixture[str]) -> None:
    """It gets the lock once `up` is done, and not before; and says what it waits for."""
    descriptors: list[int] = []
    run = threading.Thread(target=lambda: descriptors.append(shared_lock()))
    with exclusive_lock():
        run.start()
        run.join(0.2)
        assert not descriptors
    run.join(10)
    assert descriptors
    os.close(descriptors[0])
    assert "waiting for adapterflow up" in capsys.readouterr().err
    os.close(shared_lock())
    assert not capsys.readouterr().err
