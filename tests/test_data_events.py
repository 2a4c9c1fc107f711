"""Which files `adapterflow watch` tells of: those whose content is not what was told last."""

from pathlib import Path

import pytest

from flows.data_events import Watched


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make a folder with a file of rows and one that is hidden."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / ".rows.jsonl.part").write_text("{")
    return folder


def names(watched: Watched) -> list[str]:
    """Look twice, as a file must rest, and give the names of what changed."""
    watched.changed()
    return [one.path.name for one in watched.changed()]


def test_a_file_is_told_of_until_it_was_told(data: Path, tmp_path: Path) -> None:
    """What is new is changed; once noted it is not, also to a watcher started later."""
    watched = Watched([data], tmp_path / "memory.json")
    assert names(watched) == ["rows.jsonl"]
    watched.note(watched.changed())
    assert names(watched) == []
    assert names(Watched([data], tmp_path / "memory.json")) == []


def test_a_change_while_nobody_watched_is_told(data: Path, tmp_path: Path) -> None:
    """A watcher that starts after the change tells of it."""
    watched = Watched([data], tmp_path / "memory.json")
    names(watched)
    watched.note(watched.changed())
    (data / "rows.jsonl").write_text("{}\n{}\n")
    assert names(Watched([data], tmp_path / "memory.json")) == ["rows.jsonl"]


def test_the_same_content_written_again_is_no_change(data: Path, tmp_path: Path) -> None:
    """The content counts, not the time of the file."""
    watched = Watched([data], tmp_path / "memory.json")
    names(watched)
    watched.note(watched.changed())
    (data / "rows.jsonl").write_text("{}\n")
    assert names(watched) == []


def test_a_file_that_grows_is_left_for_the_next_look(data: Path, tmp_path: Path) -> None:
    """Half a file is not told of."""
    watched = Watched([data], tmp_path / "memory.json")
    assert watched.changed() == []
    with (data / "rows.jsonl").open("a") as file:
        file.write("{}\n")
    assert watched.changed() == []
    assert [one.path.name for one in watched.changed()] == ["rows.jsonl"]
