"""Places that can't be reached are refused with one message, before anything is made."""

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from flows.train_adapter import train_adapter
from flows.variants import ray_place
from flows.variants.pool_place import find_deployment
from flows.variants.ray_place import TrainingActor, check_ray, open_ray
from tasks import engine
from tasks.config import BaseModelSettings, VariantsSettings
from tasks.durability.shared_storage import leave_proof
from tasks.engine.base import give_back
from tasks.errors import UserError


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed; install it with: pip install"):
        check_ray("auto")


@pytest.mark.parametrize("address", ["here", "host:", ":1", "host:port", "ray://"])
def test_address_that_is_none_is_refused(address: str) -> None:
    """What is no HOST:PORT is told so, without a connection."""
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="is no HOST:PORT"):
        check_ray(address)


def test_address_where_nobody_answers_is_refused() -> None:
    """Ray itself would try for minutes."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        check_ray(f"127.0.0.1:{port}")


def test_actor_without_the_storage_says_so(tmp_path: Path) -> None:
    """A process on a node with other folders trains nothing, and names its host."""
    problem = TrainingActor().prepare(str(tmp_path), "set-1")

    assert f"{socket.gethostname()} does not see the storage" in str(problem)


def test_actor_keeps_the_base_from_run_to_run(tiny_base: Path, tmp_path: Path) -> None:
    """What its preparation began lasts as long as the actor."""
    actor = TrainingActor()
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        leave_proof(tmp_path, "set-1")
        assert actor.prepare(str(tmp_path), "set-1") is None
    try:
        model, _ = engine.load_base(BaseModelSettings(source=str(tiny_base)))
        assert give_back(model)
    finally:
        actor._while_it_lives.close()


class _Ray:
    """Stands in for Ray 2.60: it, too, takes the handler of SIGTERM for itself."""

    def init(self, **_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def shutdown(self) -> None:
        """Leave the cluster."""

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1}}]


def test_ray_leaves_the_handler_of_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's worker cancels a set by SIGTERM, which its flow must see as such."""
    monkeypatch.setattr(ray_place, "_import_ray", _Ray)
    settings = VariantsSettings.model_validate({"split_by": "x", "ray_address": "auto"})
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        results = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}
        with temporary_settings(results), open_ray(settings, tmp_path):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


class _Stopped(BaseException):
    """What the flow's handler raises."""


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379"])
def test_a_stop_while_ray_is_joined_is_one(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM reaches the flow's own handler, and is not taken for a cluster that is missing."""

    class Stopped(_Ray):
        def init(self, **_: object) -> None:
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)

    def stop(*_: object) -> None:
        raise _Stopped

    monkeypatch.setattr(ray_place, "_import_ray", Stopped)
    monkeypatch.setattr(ray_place, "check_ray", lambda _: None)
    settings = VariantsSettings.model_validate({"split_by": "x", "ray_address": address})
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(_Stopped), open_ray(settings, tmp_path):
            pytest.fail("there is no cluster")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_pool_without_deployment_or_worker_is_refused(prefect_server: None, tmp_path: Path) -> None:
    """Variants that no worker takes would wait forever."""
    with pytest.raises(UserError, match="has no deployment 'train-adapter/missing'"):
        find_deployment("train-adapter/missing")
    flow: Flow[..., Any] = train_adapter
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(flow)
        client.create_work_pool(WorkPoolCreate(name="idle", type="process"))
        entrypoint: dict[str, Any] = {
            "path": str(tmp_path),
            "entrypoint": "flows.train_adapter.train_adapter",
        }
        client.create_deployment(flow_id, "without-pool", **entrypoint)
        client.create_deployment(flow_id, "without-worker", work_pool_name="idle", **entrypoint)
    with pytest.raises(UserError, match="has no work pool"):
        find_deployment("train-adapter/without-pool")
    with pytest.raises(UserError, match="no worker is online in the work pool 'idle'"):
        find_deployment("train-adapter/without-worker")
