"""What the first process of a training reports to the one that started it: lines of a file.

A file holds what was reported before a checkpoint, even if both processes are killed then. The next
attempt reads it again, so that no point of the loss curve is missing in MLflow, which drops those
that it has.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.progress import logger

if TYPE_CHECKING:
    from tasks.engine.training import OnTraining, TrainingProgress


class Reporter(logging.Handler):
    """Writes the reports; as a handler of log records, those of the package's own warnings."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = file
        self._append("\n")  # after a line that a kill cut off

    def on_places(self, places: Sequence[str]) -> None:
        """Report where the processes are, by rank, before they load the base."""
        self._write("places", [list(places)])

    def on_progress(self, now: "TrainingProgress") -> None:
        """Report a step, or what was logged after it."""
        self._write("step", [now.step, now.num_steps, now.metrics, now.at])

    def on_evaluating(self, done: int, total: int) -> None:
        """Report the progress of an evaluation."""
        self._write("evaluated", [done, total])

    def on_reference(self, done: int, total: int) -> None:
        """Report for how many pairs the reference was computed."""
        self._write("reference", [done, total])

    def emit(self, record: logging.LogRecord) -> None:
        """Report a warning."""
        self._write("log", [record.levelno, record.getMessage()])

    def on_loaded(self, text: str) -> None:
        """Report what each process holds."""
        self._write("log", [logging.INFO, text])

    def _write(self, kind: str, value: list[Any]) -> None:
        self._append(json.dumps([kind, *value]) + "\n")

    def _append(self, text: str) -> None:
        # Closed each time: on NFS, others see what was written then.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


class Reports:
    """Reads the reports and passes them on.

    Args:
        file: the file, which may not be there yet.
        on_progress: called with each step and each log of losses.
        on_evaluating: called with the progress of evaluations.
        on_reference: called with that of the reference of pairs.
    """

    def __init__(
        self,
        file: Path,
        on_progress: "OnTraining",
        on_evaluating: Callable[[int, int], None] | None,
        on_reference: Callable[[int, int], None] | None,
    ) -> None:
        self._path = file
        self._on_progress = on_progress
        self._on_parts = {"evaluated": on_evaluating, "reference": on_reference}
        self._position = 0
        self._rest = b""
        self.places: list[str] = []
        """Where the processes of this attempt are, in the order of their ranks; empty before they
        have met."""

    def repeat(self, on_earlier: "OnTraining") -> None:
        """Pass on what earlier attempts logged, and nothing else of theirs."""
        for kind, *value in self._new():
            if kind == "step" and value[2]:
                on_earlier(_progress(*value))
        self._rest = b""

    def relay(self) -> None:
        """Pass on what was reported since."""
        for kind, *value in self._new():
            if kind == "step":
                self._on_progress(_progress(*value))
            elif kind == "log":
                logger().log(*value)
            elif kind == "places":
                [self.places] = value
            elif on_part := self._on_parts[kind]:
                on_part(*value)

    def _new(self) -> Iterator[list[Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            given = file.read()
        self._position += len(given)
        *lines, self._rest = (self._rest + given).split(b"\n")
        for line in lines:
            with suppress(json.JSONDecodeError):  # empty, or cut off by a kill
                yield json.loads(line)


def _progress(
    step: int, num_steps: int, metrics: dict[str, float], at: float
) -> "TrainingProgress":
    from tasks.engine.training import TrainingProgress

    return TrainingProgress(step, num_steps, metrics, at)
