"""The prompts that wait for an answer: those of concurrent requests are computed together."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .prompts import RenderedPrompt


@dataclass(frozen=True)
class Decoding:
    """How a prompt is answered; prompts with equal options can share a batch."""

    max_new_tokens: int
    temperature: float
    adapter: str | None
    """None if the rows of a batch may have different adapters."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""


@dataclass(eq=False)
class Job:
    """One prompt that waits for its answer."""

    prompt: list[int]
    """The prompt's tokens."""
    adapter: str
    decoding: Decoding
    asked: RenderedPrompt = field(default_factory=lambda: RenderedPrompt(""))
    words: list[int | None] = field(default_factory=list)
    """The first token of each word, for token classification."""
    answer: str | dict[str, Any] | None = None
    error: Exception | None = None
    is_done: threading.Event = field(default_factory=threading.Event)


class JobQueue:
    """The jobs of all requests, of which a batch at a time is computed.

    Args:
        answer: returns the answers to jobs with equal decoding options; it is called by one thread
            at a time.
        batch_size: the most jobs of a batch.
    """

    def __init__(self, answer: Callable[[list[Job]], list[Any]], batch_size: int) -> None:
        self._answer, self._batch_size = answer, batch_size
        self._waiting: deque[Job] = deque()
        self._changing, self._computing = threading.Lock(), threading.Lock()

    def answer_all(self, jobs: list[Job]) -> None:
        """Wait until these are answered; the thread that gets the lock computes for all of them.

        Raises:
            Exception: whatever `answer` raised for one of them; the others are not computed.
        """
        with self._changing:
            self._waiting.extend(jobs)
        try:
            for job in jobs:
                self._wait_for(job)
        finally:  # the rest of a failed request need not be computed
            with self._changing:
                self._waiting = deque(one for one in self._waiting if one not in jobs)

    def _wait_for(self, job: Job) -> None:
        while not job.is_done.is_set():
            with self._computing:
                # Another request may have answered it in the meantime.
                if not job.is_done.is_set():
                    self._answer_batch(self._take())
        if job.error:
            raise job.error

    def _take(self) -> list[Job]:
        """Take the job that has waited longest, and others with equal decoding options."""
        with self._changing:
            decoding = self._waiting[0].decoding
            batch = [job for job in self._waiting if job.decoding == decoding]
            batch = batch[: self._batch_size]
            for job in batch:
                self._waiting.remove(job)
        return batch

    def _answer_batch(self, batch: list[Job]) -> None:
        try:
            answers = self._answer(batch)
            for job, answer in zip(batch, answers, strict=True):
                job.answer = answer
        except Exception as error:  # noqa: BLE001 - each of the requests raises it
            for job in batch:
                job.error = error
        finally:
            for job in batch:
                job.is_done.set()
