"""What `adapterflow up` tells, and which work pool it leaves alone."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

from flows.server.stack import POOL, Stack


def test_a_wait_is_told_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what is waited for, and where to read more."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    told: list[str] = []
    Stack(1, 2, told.append)._wait("prefect", lambda: bool(told))
    assert told == [f"waiting for prefect, whose log is {tmp_path / '.prefect/prefect.log'}"]


@pytest.mark.slow
def test_a_work_pool_of_another_type_is_left(prefect_server: None) -> None:
    """It stays as somebody made it, and the note says how to go on; then one is made."""
    port = urlsplit(str(get_current_settings().api.url)).port
    assert port
    stack = Stack(port, 1)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="docker"))
        try:
            before = client.read_work_pool(POOL)
            assert not stack._install_pool()
            assert client.read_work_pool(POOL) == before
        finally:
            client.delete_work_pool(POOL)
        (note,) = stack.notes
        assert "is of the type 'docker'" in note
        assert f"prefect work-pool delete {POOL}" in note
        assert stack._install_pool()
        assert client.read_work_pool(POOL).type == "process"
        client.delete_work_pool(POOL)
