"""Retrainings that fail, wait or are overtaken: nothing is compared, registered or said twice."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flow_runs import task_run
from mlflow import MlflowClient
from mlflow_runs import numbers_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.events import Event
from prefect.exceptions import ObjectAlreadyExists
from retraining_runs import aliases, events_of, executed, retrained, retraining, rows_of
from running_stack import wait_until

from flows.cli import runs
from flows.retrain_adapter import retrain_adapter
from tasks.config import RetrainAdapterConfig
from tasks.durability.device_slot import device_names
from tasks.errors import PassingError, VerificationError
from tasks.records import Outcome, RetrainedRecord, VersionRecord
from tasks.runtime import events
from tasks.tracking import Registry

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_queued_retraining_looks_when_it_is_its_turn(tiny_base: Path, tmp_path: Path) -> None:
    """What another run trained while this one waited for the device is not trained again."""
    config = retraining(tiny_base, tmp_path, "queued")
    queued = run_of_a_deployment(config)
    with ThreadPoolExecutor(1) as pool:
        with held_device():
            waiting = pool.submit(executed, queued)
            wait_until(lambda: "waits" if is_waiting(queued) else None, "the queued run")
            assert retrained(config).decision.outcome is Outcome.PROMOTE
        decision = waiting.result().decision
    assert decision.outcome is Outcome.SKIP
    assert "those of version 1" in decision.reason


def run_of_a_deployment(config: RetrainAdapterConfig) -> FlowRun:
    """Create a run that takes its turn on the device, as runs of deployments do."""
    given = {"config": config.model_dump(mode="json")}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retrain_adapter), "queued")
        return client.create_flow_run_from_deployment(deployment, parameters=given)


@contextmanager
def held_device() -> Iterator[None]:
    """Hold this machine's device."""
    limit = GlobalConcurrencyLimitCreate(name=device_names()[0], limit=1)
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(limit)
    with concurrency(device_names()[0], strict=True):
        yield


def is_waiting(flow_run: FlowRun) -> bool:
    """Return whether the run's data is checked, which is all that it does before its turn."""
    checked = task_run(flow_run, "validate_inputs")
    return bool(checked and checked.state and checked.state.is_completed())


@pytest.fixture(scope="module")
def resumed(
    prefect_server: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> RetrainedRecord:
    """Retrain in a run that fails at the promotion, is resumed, and loses Prefect's answer."""
    config = retraining(tiny_base, tmp_path_factory.mktemp("resumed"), "resumed")
    flow_run = runs.create_run(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "promote", _failing)
        with pytest.raises(VerificationError, match="once"):
            executed(flow_run)
    send = events.send

    def lose_the_answer(sent: Iterable[Event]) -> None:
        send(sent)
        patch.undo()
        raise PassingError("no answer")

    patch.setattr(events, "send", lose_the_answer)
    return executed(runs.reopen_run(flow_run.id))


def _failing(*_: object) -> None:
    raise VerificationError("once")


def test_a_resumed_retraining_takes_the_kept_comparison(resumed: RetrainedRecord) -> None:
    """A run that failed at its end evaluates once, and registers no second version."""
    assert resumed.decision.outcome is Outcome.PROMOTE
    assert resumed.run
    numbers = numbers_of(resumed.run)
    assert resumed.evaluated
    for model in resumed.evaluated.models:
        assert numbers[f"evaluation/{model.name}_rows_per_second"] == model.rows_per_second
    assert [one.version for one in versions(resumed)] == [1]
    assert "champion" in versions(resumed)[0].aliases


def versions(record: RetrainedRecord) -> list[VersionRecord]:
    """Return the versions of the record's model."""
    assert record.run
    assert record.version
    return Registry(record.run.tracking_uri, record.version.name).versions()


def test_an_event_that_was_sent_twice_is_one(resumed: RetrainedRecord) -> None:
    """While Prefect does not answer the step is not done; the next attempt's event is the same."""
    promoted = wait_until(lambda: events_of("resumed"), "the event")
    assert promoted == [("adapterflow.adapter.promoted", 1)]


@pytest.mark.slow
def test_a_challenger_that_was_overtaken_is_compared_anew(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who loses the race for the first place is not promoted, and not skipped the next time."""
    config = retraining(tiny_base, tmp_path, "overtaken")
    retrained(config)
    more = str(rows_of(tmp_path / "more.jsonl", range(60)))
    second = retraining(
        tiny_base, tmp_path, "overtaken", data={"train": more}, training={"num_train_epochs": 6}
    )
    promote = Registry.promote

    def overtaken(registry: Registry, version: int, instead_of: int | None) -> object:
        client = MlflowClient(registry.uri, registry.uri)
        client.delete_registered_model_alias(registry.name, "champion")
        return promote(registry, version, instead_of)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", overtaken)
        record = retrained(second)
    assert record.decision.outcome is Outcome.OUTDATED
    assert "the champion was removed" in record.decision.reason
    assert aliases(second) == {"challenger": 2}
    assert retrained(second).decision.outcome is Outcome.PROMOTE
