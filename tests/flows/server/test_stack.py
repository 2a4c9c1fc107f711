"""What `adapterflow up` tells while it waits."""

from pathlib import Path

import pytest

from flows.server.stack import Stack


def test_a_wait_is_told_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what is waited for, and where to read more."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    told: list[str] = []
    Stack(1, 2, told.append)._wait("prefect", lambda: bool(told))
    assert told == [f"waiting for prefect, whose log is {tmp_path / '.prefect/prefect.log'}"]
