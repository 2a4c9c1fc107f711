"""A folder that somebody sent gives away no file that is not in it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from tiny_models import tiny_adapter

from tasks.config import BaseModelSettings
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.base.sources import find_base
from tasks.errors import UserError


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter."""
    return tiny_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Write what is to stay on this machine."""
    file = tmp_path / "elsewhere" / "key"
    file.parent.mkdir()
    file.write_text("a-secret")
    return file


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """Copy the adapter to a folder that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def _twice(folder: Path, secret: Path) -> None:
    (folder / "inside").symlink_to(secret)
    (folder / "notes.txt").symlink_to("inside")


def _deeper(folder: Path, secret: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "notes.txt").symlink_to(secret)


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "file": lambda folder, secret: (folder / "notes.txt").symlink_to(secret),
    "card": lambda folder, secret: (folder / "README.md").symlink_to(secret),
    "relative": lambda folder, _: (folder / "notes.txt").symlink_to("../elsewhere/key"),
    "folder": lambda folder, secret: (folder / "notes.txt").symlink_to(secret.parent),
    "of a link": _twice,
    "deeper": _deeper,
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@pytest.mark.parametrize("verb", ["export", "push", "bundle", "combine"])
def test_a_link_out_of_an_adapter_is_refused(  # noqa: PLR0913 - fixtures
    verb: str,
    link: Callable[[Path, Path], None],
    adapter: Path,
    secret: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copying or pushing the folder reports the link by name; nothing is written."""
    (adapter / "README.md").unlink(missing_ok=True)
    link(adapter, secret)
    to = tmp_path / "to"
    words: dict[str, Sequence[object]] = {
        "export": [adapter, to],
        "push": [adapter, "org/name"],
        "bundle": [to, f"one={adapter}"],
        "combine": [to, adapter, adapter],
    }
    status, _, problem = run_in_process(capsys, monkeypatch, verb, *words[verb])
    assert status == 2, problem
    assert "is a symbolic link out of the folder" in problem
    assert not to.exists()


def test_a_link_within_an_adapter_is_fine(adapter: Path, tmp_path: Path) -> None:
    """What it leads to is the adapter's own; the folder may itself be reached by a link."""
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "copy.jinja").symlink_to("chat_template.jinja")
    (tmp_path / "latest").symlink_to(adapter)
    assert find_adapter(tmp_path / "latest").path == adapter


def in_cache(folder: Path, cache: Path) -> Path:
    """Lay a folder's files out as huggingface_hub's cache does."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_fine(
    saved: Path, tiny_base: Path, secret: Path, tmp_path: Path
) -> None:
    """Its links lead to the repository's contents; one that leads further is refused."""
    snapshot = in_cache(saved, tmp_path / "cache")
    assert find_adapter(snapshot).path == snapshot
    base = in_cache(tiny_base, tmp_path / "bases")
    assert find_base(BaseModelSettings(source=str(base))).fingerprint
    (snapshot / "notes.txt").symlink_to("../../blobs/key")
    (snapshot / "../../blobs/key").symlink_to(secret)
    with pytest.raises(UserError, match=r"notes\.txt is a symbolic link out of the folder"):
        find_adapter(snapshot)


def test_a_link_out_of_a_base_is_refused(tiny_base: Path, secret: Path, tmp_path: Path) -> None:
    """Its fingerprint would be another file's, which may be changed behind its back."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "model-2.safetensors").symlink_to(secret)
    with pytest.raises(UserError, match=r"model-2\.safetensors is a symbolic link out of"):
        find_base(BaseModelSettings(source=str(base)))
