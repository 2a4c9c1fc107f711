"""A file or folder is complete or not there, and the error says what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import file_size_limit

from tasks.engine.adapters import adapter_state
from tasks.errors import AdapterflowError, UnwritableError
from tasks.runtime.atomic_files import atomic_folder, write_atomically


def test_a_folder_that_is_written_well_takes_its_place(tmp_path: Path) -> None:
    """The new folder stands where the old one did, and nothing is left beside it."""
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "adapter") as partial:
            (partial / "file").write_text(content)
    assert (tmp_path / "adapter" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    """Whatever fails within, the folder is as it was, and no half one is left."""
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "adapter") as partial:
        (partial / "file").write_text(f"half {1 / 0}")
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter"]


def test_an_interrupted_exchange_keeps_the_old_folder(tmp_path: Path) -> None:
    """Stopped between its two renamings, here or in a process that was killed, it is undone."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "file").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        real = Path.rename
        patch.setattr(Path, "rename", lambda self, to: _stop_at_partial(real, self, to))
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "adapter"):
            pass
    assert (tmp_path / "adapter" / "file").read_text() == "old"
    (tmp_path / "adapter").rename(tmp_path / ".adapter.old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "adapter") as partial:
        (partial / "file").write_text(f"half {1 / 0}")
    assert (tmp_path / "adapter" / "file").read_text() == "old"


def _stop_at_partial(rename: Callable[[Path, Path], Path], path: Path, to: Path) -> Path:
    if path.name.endswith(".partial"):
        raise KeyboardInterrupt
    return rename(path, to)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is one message with the path."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AdapterflowError, match=r"file/adapter can't be written.*resume the run"),
        atomic_folder(tmp_path / "file" / "adapter"),
    ):
        pass


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """After an error in writing, the file has its old content, and nothing is left beside it."""
    write_atomically(tmp_path / "made" / "file", "old ä")
    message = r"made/file can't be written: .*File too large"
    with file_size_limit(2), pytest.raises(UnwritableError, match=message):
        write_atomically(tmp_path / "made" / "file", "new")
    assert (tmp_path / "made" / "file").read_bytes() == "old ä".encode()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["file"]


def test_a_full_disk_leaves_no_half_adapter(tmp_path: Path) -> None:
    """When the kernel refuses to write on, nothing stands under the final name or beside it."""
    weights = {"a": torch.zeros(4096)}
    with (
        file_size_limit(4096),
        pytest.raises(UnwritableError, match="can't be written"),
        atomic_folder(tmp_path / "adapter") as partial,
    ):
        adapter_state.save_weights(weights, partial / "adapter_model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_any_length_is_written(tmp_path: Path) -> None:
    """The hidden sibling's name fits where the file's own name just does."""
    longest = tmp_path / ("ä" * 124 + ".jsonl")
    write_atomically(longest, "text")
    with atomic_folder(tmp_path / ("x" * 255)) as partial:
        (partial / "file").write_text("text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x" * 255, longest.name]
