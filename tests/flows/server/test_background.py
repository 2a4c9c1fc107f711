"""Processes that outlive their command: which are found again, and which are ended."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from running_stack import wait_until

from flows.server.background import Background
from tasks.errors import UserError

SERVER = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
child.wait()
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """Start a server with a child, noted in a folder, and give the child."""
    (tmp_path / "a_server.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    Background(tmp_path / "notes").start("server", ["a_server", "its-child"], {}, port=4242)
    file = tmp_path / "its-child"
    started = psutil.Process(
        int(wait_until(lambda: file.exists() and file.read_text(), "the child"))
    )
    server = started.parent()  # by now: later it may be whoever takes orphans in
    assert server
    yield started
    for process in (server, started):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_children_are_ended_though_their_parent_died(child: psutil.Process, tmp_path: Path) -> None:
    """A server that was killed is not up; what it left behind is found and ended all the same."""
    background = Background(tmp_path / "notes")
    assert background.ports() == {"server": 4242}
    server = child.parent()
    assert server
    server.kill()
    wait_until(lambda: background.ports() == {}, "the end of the server")
    assert child.is_running()
    assert background.stop(["server"]) == ["server"]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert background.stop(["server"]) == []


def test_another_program_with_a_noted_id_is_left_alone(tmp_path: Path) -> None:
    """The system gives the id of a process that ended to another one, which is not ours to end."""
    (tmp_path / "stack.json").write_text(
        f'{{"server": {{"pid": {psutil.Process().pid}, "port": 4242}}}}'
    )
    assert Background(tmp_path).ports() == {}
    assert Background(tmp_path).stop(["server"]) == []


@pytest.mark.parametrize("noted", ["[]", "null", '{"mlflow": 3}', '{"mlflow": {"pid": "x"}}', "{"])
def test_a_list_of_another_shape_is_named(tmp_path: Path, noted: str) -> None:
    """The file in the home is told, whatever an editor or a full disk left of it."""
    (tmp_path / "stack.json").write_text(noted)
    with pytest.raises(UserError, match=r"stack\.json"):
        Background(tmp_path).ports()
