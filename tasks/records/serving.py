"""What a server has to reproduce of an evaluation, and what came of publishing to it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tasks.config import AnswerKind
from tasks.records.record import Record

REFERENCE_FILE = "serving_reference.json"
"""Name of the file of a `ServingReference`, in the folder and the artifacts of an evaluation."""


class Probe(Record):
    """A sequence of tokens, and how probable base and adapter find its end."""

    tokens: tuple[int, ...]
    first: int
    """Position of the first token that counts; the tokens before it are context."""
    base: float
    """The base's log-probability per token that counts, in nats."""
    adapter: float
    """The adapter's, on this base."""


class ReplayRow(Record):
    """A held-out row as a client sends it, and the adapter's answer when it was judged."""

    row: int
    question: str
    messages: tuple[Mapping[str, Any], ...] = ()
    """As in a request for a chat completion; empty if prompts have no chat template."""
    tools: tuple[Mapping[str, Any], ...] = ()
    tokens: tuple[int, ...] = ()
    """The prompt where there is no chat template."""
    num_prompt_tokens: int
    opening: str = ""
    """What the chat template writes before the answer's content, such as an empty thought."""
    expected: str
    answer: str


class ServingReference(Record):
    """What base and adapter computed on this machine when the adapter was judged."""

    answers: AnswerKind
    max_new_tokens: int
    chat_template_kwargs: Mapping[str, Any] = {}
    fixed: tuple[Probe, ...]
    """Texts that are the same for every base."""
    held_out: tuple[Probe, ...]
    """The held-out rows on which base and adapter differ most."""
    rows: tuple[ReplayRow, ...]


class ServingOutcome(StrEnum):
    """What came of publishing an adapter to a server."""

    PUBLISHED = "published"
    WRONG_BASE = "wrong base"
    IGNORED = "adapter ignored"
    ANOTHER_ADAPTER = "another adapter"
    DIFFERS = "answers differ"


class ServedRow(Record):
    """A held-out row as the server answered it."""

    row: int
    question: str
    expected: str
    judged: str
    """The answer when the adapter was judged."""
    served: str
    has_other_prompt: bool
    """Whether the server rendered the prompt to another number of tokens."""

    @property
    def differs(self) -> bool:
        """Whether the two answers differ, beside whitespace at their ends."""
        return self.judged.strip() != self.served.strip()


class PublishedRecord(Record):
    """A try to publish a version of the registered model to a server."""

    uri: str
    served_as: str
    """The model's name in requests."""
    url: str
    folder: str
    """Where the server finds adapters."""
    server: str
    """The server's version."""
    base: str
    """The base's name on the server."""
    outcome: ServingOutcome
    reason: str
    metric: str = ""
    judged: float | None = None
    served: float | None = None
    num_rows: int = 0
    differing: tuple[ServedRow, ...] = ()
    """The rows whose answers differ."""
