"""Which files `adapterflow watch` tells of: those whose content is not what was told last."""

from pathlib import Path

import pytest

from flows.server.data_events import Watched
from flows.server.deployment_parameters import read_parameters
from tasks.errors import UserError


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


@pytest.mark.parametrize("way", ["../data/rows.jsonl", "../link/../data/rows.jsonl"])
def test_a_file_has_one_name_whichever_way_leads_to_it(
    way: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment waits for the event of its file, also with `..` in either path, or a link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    file = elsewhere / "training.yaml"
    file.write_text(f"base_model: {{source: org/model}}\ndata: {{train: {way}}}\n")
    monkeypatch.chdir(elsewhere)
    watched = Watched([Path(way)], tmp_path / "memory.json")
    watched.changed()
    (told,) = watched.changed()
    assert str(told.path) == str(data / "rows.jsonl")
    assert str(told.path) in read_parameters("train-adapter", str(file))["data_paths"]


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


def test_a_file_that_cannot_be_read_stops_nothing(data: Path, tmp_path: Path) -> None:
    """The others are emitted; for this one, the reason is reported."""
    unreadable = data / "memory.jsonl"
    unreadable.symlink_to("/proc/self/mem")  # which refuses even root
    watched = Watched([data], tmp_path / "memory.json")
    assert names(watched) == ["rows.jsonl"]
    assert list(watched.unreadable) == [unreadable]


@pytest.mark.parametrize("memory", ["[]", "null", "", "{"])
def test_a_memory_of_another_shape_is_named(data: Path, tmp_path: Path, memory: str) -> None:
    """The file in the home is told, whatever an editor or a full disk left of it."""
    (tmp_path / "memory.json").write_text(memory)
    with pytest.raises(UserError, match=r"memory\.json"):
        Watched([data], tmp_path / "memory.json").changed()
