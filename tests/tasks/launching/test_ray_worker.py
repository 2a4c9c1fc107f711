"""A host of a cluster that can't train says what it does not see, before it loads anything."""

import shutil
import socket
from pathlib import Path

import pytest
from engine_steps import injected, prepared, training

from tasks.launching.ray_worker import missing
from tasks.launching.work import Work, WorkFolder


@pytest.mark.parametrize("lost", ["folder", "other", "tokens", "base", ""])
def test_what_a_host_does_not_see_is_named(lost: str, tiny_base: Path, tmp_path: Path) -> None:
    """The run's folder, another run's in its place, the data, or the base: by host and file."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    _, record = injected(base, tmp_path)
    data = prepared(record.lora.base, tmp_path).record
    work = Work(
        injected=record,
        data=data,
        settings=training(),
        checkpoints=tmp_path / "checkpoints",
        max_eval_rows=None,
        size=2,
    )
    written, folder = work.model_dump_json(), WorkFolder(tmp_path / "launch")
    folder.prepare()
    folder.work.write_text(written if lost != "other" else "{}")
    files = {"tokens": data.tokens[0].path, "base": base / "config.json"}
    if lost == "folder":
        shutil.rmtree(folder.folder)
    elif lost in files:
        files[lost].unlink()
    problem = missing(folder, written)
    if not lost:
        assert problem == ""
        return
    unseen = files.get(lost, folder.work)
    assert f"the host {socket.gethostname()} does not see {unseen} " in problem
