"""Labels of a run reach Prefect in their order, also where it is away for a while."""

from collections.abc import Iterator
from typing import Self
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from running_stack import wait_until

from tasks.durability import run_labels
from tasks.durability.run_labels import STEP, in_step, set_label


class Server:
    """Stands in for Prefect's client: fails as told, and keeps the labels that it takes."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.taken: list[str] = []
        self.addresses: list[str | None] = []

    def __enter__(self) -> Self:
        self.addresses.append(PREFECT_API_URL.value())
        return self

    def __exit__(self, *_: object) -> None:
        return

    def update_flow_run_labels(self, _: UUID, labels: dict[str, str]) -> None:
        """Take labels, or fail."""
        if self.failures:
            raise self.failures.pop(0)
        self.taken.append(labels[STEP])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Take the place of every server, for a run of this test."""
    server = Server()
    monkeypatch.setattr(run_labels, "get_client", lambda **_: server)
    monkeypatch.setattr(run_labels, "_SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid4()))
    with temporary_settings({PREFECT_API_URL: f"http://{uuid4()}.test/api"}):
        yield server


def test_a_label_waits_for_a_server_that_is_away(server: Server) -> None:
    """It arrives when the server is back, before those that were set after it."""
    server.failures = [httpx.ConnectError("away"), httpx.ReadTimeout("away")]
    set_label(STEP, "first")
    set_label(STEP, "second")
    wait_until(lambda: server.taken == ["first", "second"], "both labels")


def test_a_label_that_is_refused_holds_up_none(server: Server) -> None:
    """Such as one of a run that was deleted meanwhile."""
    server.failures = [RuntimeError("no such run")]
    set_label(STEP, "first")
    set_label(STEP, "second")
    wait_until(lambda: server.taken, "the second")
    assert server.taken == ["second"]


def test_each_server_gets_the_labels_of_its_runs(server: Server) -> None:
    """A process that used one server before sends to the one that it uses now."""
    set_label(STEP, "here")
    with temporary_settings({PREFECT_API_URL: f"http://{uuid4()}.test/api"}):
        set_label(STEP, "there")
    wait_until(lambda: sorted(server.taken) == ["here", "there"], "both labels")
    assert len(set(server.addresses)) == 2


def test_the_step_that_failed_is_known_when_the_run_ends(server: Server) -> None:
    """The alert, which Prefect writes at once, names it."""
    server.failures = [httpx.ConnectError("away")]
    with pytest.raises(ValueError, match="failed"), in_step("train_adapter"):
        raise ValueError("failed")
    assert server.taken == ["train_adapter"]


def test_a_failing_run_does_not_wait_for_ever_for_its_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with its own error."""
    monkeypatch.setattr(run_labels, "_SECONDS_AT_AN_END", 0.05)
    server.failures = [httpx.ConnectError("away")] * 1000
    with pytest.raises(ValueError, match="failed"), in_step("train_adapter"):
        raise ValueError("failed")
    assert not server.taken
