"""Work through items in processes of their own, within a limit of time."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.processes import ProcessFailed, Worker
from benchmarks.on_gpu.messages import Finding, Item, Place, State
from benchmarks.on_gpu.peers import PEERS

_START_SECONDS = 15
"""To load the libraries on a fresh machine. A guess."""
START_LIMIT = 60
_END_OF_LOG = 4000
"""Characters."""


@dataclass
class Clock:
    """The time that is left."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds left; 0 if it is over."""
        return max(0.0, self.seconds - (time.monotonic() - self._began))


@dataclass
class Runner:
    """Runs parts, which are items that share a process."""

    place: Place
    variables: Mapping[str, str]
    clock: Clock
    _started: int = 0

    def run(self, part: Iterable[Item]) -> Iterator[Finding]:
        """Yield a finding for each item, as soon as it is there.

        A process that dies or takes too long costs one item: the others get a new one.
        """
        worker: Worker | None = None
        with ExitStack() as stack:
            for item in part:
                if not_begun := self._not_begun(item, 0 if worker else _START_SECONDS):
                    yield not_begun
                    continue
                limit = item.limit_seconds + (0 if worker else START_LIMIT)
                worker = worker or stack.enter_context(self._worker())
                try:
                    worker.send(item)
                    yield worker.receive(Finding, min(limit, self.clock.left()))
                except ProcessFailed as error:
                    stack.close()
                    worker, end = None, self._log.read_text(errors="replace")[-_END_OF_LOG:]
                    yield Finding(item=item, state=State.ERROR, reason=str(error), trace=end)

    def _not_begun(self, item: Item, start_seconds: float) -> Finding | None:
        """Return why an item is not begun, if it isn't."""
        if item.kind == "training" and (why := PEERS[item.name].why_not(item.method)):
            return Finding(item=item, state=State.ABSENT, reason=why)
        left = self.clock.left()
        if left < start_seconds + item.expected_seconds:
            return Finding(item=item, state=State.LEFT_OUT, reason=f"{left:.0f} s were left")
        return None

    def _worker(self) -> Worker:
        self._started += 1
        request = self.place.folder / "place.json"
        request.write_text(self.place.model_dump_json())
        return Worker("on_gpu.worker", request, self._log, self.variables)

    @property
    def _log(self) -> Path:
        return self.place.folder / f"worker-{self._started}.log"
