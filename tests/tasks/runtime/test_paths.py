"""A path is refused where nothing can be, before anybody looks there."""

from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.runtime.paths import check_folder, exists, path_problem

PROBLEMS = {
    "NUL": ("a\0b", "NUL"),
    "a surrogate": ("a\udcff", "not UTF-8"),
    "a long name": ("x" * 300, "too long"),
    "a long path": ("x/" * 3000, "too long"),
    "a loop": ("loop", "symbolic links"),
    "nobody's home": ("~nobody-of-that-name/x", "no user"),
}


@pytest.mark.parametrize("case", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_path_that_can_be_none_is_told(
    case: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is one clause, and to ask whether something is there raises nothing."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    path, problem = case
    assert problem in str(path_problem(path))
    assert not exists(path)
    with pytest.raises(UserError, match=f"output.folder .*{problem}"):
        check_folder(tmp_path / path if not path.startswith("~") else Path(path), "output.folder")


@pytest.mark.parametrize(
    "path", ["gone", "gone/below", "file", "file/below", "~", "~/gone", "", "."]
)
def test_a_path_that_could_be_one_is_none_s_problem(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether something is there is another question, with another message."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert path_problem(path) is None


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    """A folder that can be written to, or created below one, is neither created nor changed."""
    for place in (tmp_path, tmp_path / "new" / "below"):
        check_folder(place, "output.folder")
    assert list(tmp_path.iterdir()) == []
    for place in (Path("/proc/new"), Path("/proc"), Path("/dev/null/x")):
        with pytest.raises(UserError, match=f"output.folder is {place}"):
            check_folder(place, "output.folder")
