"""Processes of this machine execute what they are given, whatever becomes of them.

The process here is a stand-in that trains nothing: it notes what it was given, and may die of it.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from flows.train_adapter import train_adapter
from flows.variants.local_place import LocalPlace

_WORKER = """
import os, sys, time
from pathlib import Path

folder, deaths = Path(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    run = line.strip()
    attempts = len(list(folder.glob(f"{run}-*"))) + 1
    (folder / f"{run}-{attempts}").write_text(str(os.getpid()))
    if attempts <= deaths:
        os.kill(os.getpid(), 9)
    if deaths < 0:
        time.sleep(600)
    print("ended", run, flush=True)
"""


class _Given:
    """What the stand-ins were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def place(self, num_processes: int, *, deaths: int = 0) -> LocalPlace:
        """Return a place whose processes die of a run so often; below 0, they never end one."""
        command = (sys.executable, "-c", _WORKER, str(self.folder), str(deaths))
        return LocalPlace(num_processes, self.folder.parent / "logs", command)

    @property
    def attempts(self) -> Counter[str]:
        """The number of times that each run was given to a process."""
        return Counter(one.name.rpartition("-")[0] for one in self.folder.iterdir())

    @property
    def processes(self) -> set[int]:
        """Which processes were given anything."""
        return {int(one.read_text()) for one in self.folder.iterdir()}


@pytest.fixture
def given(tmp_path: Path) -> _Given:
    """Return what is given in a test."""
    return _Given(tmp_path / "given")


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Check that the place has ended its processes."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def test_each_run_is_executed_once(given: _Given) -> None:
    """Two processes share the runs, and serve a second round as well."""
    runs = [uuid4() for _ in range(7)]
    ended: list[UUID] = []
    with given.place(2) as place:
        place.execute(runs[:4], ended.append)
        place.execute(runs[4:], ended.append)
    assert sorted(ended) == sorted(runs)
    assert given.attempts == Counter(map(str, runs))
    assert len(given.processes) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_process_that_dies_is_replaced(given: _Given, num_processes: int) -> None:
    """A run whose process was killed twice is given to a third, and ends once."""
    runs = [uuid4() for _ in range(3)]
    ended: list[UUID] = []
    with given.place(num_processes, deaths=2) as place:
        place.execute(runs, ended.append)
    assert sorted(ended) == sorted(runs)
    assert given.attempts == Counter({str(run): 3 for run in runs})


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_is_cancelled_is_not_executed_again(given: _Given) -> None:
    """Its process ends of that, and is replaced for the other run, whose own process died."""
    flow: Flow[..., Any] = train_adapter
    ended: list[UUID] = []
    with get_client(sync_client=True) as client:
        cancelled, other = (client.create_flow_run(flow).id for _ in range(2))
        client.set_flow_run_state(cancelled, Cancelling(), force=True)
        with given.place(1, deaths=1) as place:
            place.execute([cancelled, other], ended.append)
        state = client.read_flow_run(cancelled).state
    assert ended == [cancelled, other]
    assert given.attempts == Counter({str(cancelled): 1, str(other): 2})
    assert state
    assert state.is_cancelled()


def test_a_mistake_of_the_caller_ends_the_processes(given: _Given) -> None:
    """Whatever interrupts the set, no run is left executing."""

    def fail(run: UUID) -> None:
        raise RuntimeError(str(run))

    with pytest.raises(RuntimeError), given.place(2) as place:
        place.execute([uuid4(), uuid4()], fail)


def test_an_interruption_ends_active_runs(given: _Given) -> None:
    """Ctrl-C during runs that never end stops them."""
    runs = [uuid4(), uuid4()]

    def interrupt(*_: object) -> None:
        if len(given.attempts) == len(runs):  # both are active
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGALRM, interrupt)
    with given.place(2, deaths=-1) as place:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        with pytest.raises(KeyboardInterrupt):
            place.execute(runs, lambda _: None)
