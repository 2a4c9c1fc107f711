"""The place 'here': processes of this machine, each of which trains one variant after the other.

A process that is killed is replaced, and its variant goes to the next free one, which resumes it.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import UUID

from prefect.settings import get_current_settings

from flows.variants.lost_processes import LostProcesses

_COMMAND = (sys.executable, "-m", "flows.variants.worker")
_SECONDS_TO_STOP = 15.0
"""For active runs to write their state, when the set is stopped."""


class _Worker:
    """A process of `flows.variants.worker`, and the run that it executes."""

    def __init__(self, number: int, log: Path, command: Sequence[str]) -> None:
        self.number = number
        self.log = log
        self.run: UUID | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(number),
                # Ctrl-C reaches this process alone, which then stops the workers in order.
                start_new_session=True,
            )
        assert self._process.stdout  # noqa: S101 - a pipe
        self.messages = self._process.stdout

    def give(self, run: UUID) -> None:
        """Have it execute a run; if it has died, its messages end."""
        self.run = run
        with suppress(BrokenPipeError):
            self._write(f"{run}\n")

    def _write(self, text: str) -> None:
        assert self._process.stdin  # noqa: S101 - a pipe
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def reap(self) -> str:
        """Wait for the end of a process whose messages ended; return how it ended."""
        self.dismiss()
        status = self._process.wait()
        self.messages.close()
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def dismiss(self) -> None:
        """Let it end once it is idle."""
        with suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()

    def stop(self) -> None:
        """Interrupt its run, which is recorded as stopped."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for its end; from the deadline on, it is killed."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.messages.close()


def _environment(number: int) -> dict[str, str]:
    """Return a worker's environment: this process's Prefect, and one of its GPUs.

    What Prefect's runner tells the process of a flow run, such as the port by which it is
    cancelled, is not for its variants.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT__")}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    devices = _gpus()
    own = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}
    # The libraries' bars would fill the log.
    return {**inherited, **settings, "TQDM_DISABLE": "1", **own}


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


class LocalPlace:
    """Up to `num_processes` workers, started as they are needed."""

    needs_device = True
    deployment_id: UUID | None = None

    def __init__(self, num_processes: int, logs: Path, command: Sequence[str] = _COMMAND) -> None:
        self._num_processes, self._command = num_processes, command
        self._logs = logs
        self._workers: dict[int, _Worker] = {}
        self._lost = LostProcesses()
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers: idle ones at once, and active ones by SIGTERM."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.dismiss()
            if worker.run:
                worker.stop()
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for worker in workers:
            worker.wait_or_kill(deadline)
        self._workers.clear()
        self._selector.close()

    def execute(self, flow_run_ids: Sequence[UUID], on_ended: Callable[[UUID], None]) -> None:
        """Execute flow runs; see `flows.variants.places.Place`."""
        waiting = deque(flow_run_ids)
        try:
            while waiting or any(one.run for one in self._workers.values()):
                self._fill(waiting)
                for worker in self._speaking():
                    if (ended := self._heard(worker, waiting)) is not None:
                        on_ended(ended)
        except BaseException:
            self._stop_active()
            raise

    def _fill(self, waiting: deque[UUID]) -> None:
        """Assign each idle worker a run; start workers while there are fewer than runs for them."""
        for number in range(self._num_processes):
            if not waiting:
                return
            worker = self._workers.get(number) or self._start(number)
            if worker.run is None:
                worker.give(waiting.popleft())

    def _start(self, number: int) -> _Worker:
        worker = _Worker(number, self._logs / f"worker-{number}.log", self._command)
        self._workers[number] = worker
        self._selector.register(worker.messages, selectors.EVENT_READ, worker)
        return worker

    def _speaking(self) -> list[_Worker]:
        return [key.data for key, _ in self._selector.select()]

    def _heard(self, worker: _Worker, waiting: deque[UUID]) -> UUID | None:
        """Read a message; return the run that ended, if one did."""
        if worker.messages.readline():
            ended, worker.run = worker.run, None
            return ended
        how, run = self._removed(worker), worker.run
        if run is not None and self._lost.may_be_replaced(run, how):
            waiting.appendleft(run)
            return None
        return run

    def _removed(self, worker: _Worker) -> str:
        """Remove a worker that died; return how it did."""
        self._selector.unregister(worker.messages)
        del self._workers[worker.number]
        return f"{worker.reap()}; its log: {worker.log}"

    def _stop_active(self) -> None:
        active = [one for one in self._workers.values() if one.run]
        for worker in active:
            worker.stop()
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for worker in active:
            self._selector.unregister(worker.messages)
            worker.wait_or_kill(deadline)
            del self._workers[worker.number]
