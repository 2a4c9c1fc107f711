"""Pushing an adapter to the Hub: the same bytes, or a clear error and a complete local folder."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from engine_steps import loaded, logits, save_here, trained
from hub_stand_in import HubStandIn, point_clients_at

from tasks.engine.hub import check_push, push_adapter
from tasks.engine.loading import load_adapter
from tasks.errors import AdapterflowError, UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running fake Hub that this process takes for the real one."""
    with HubStandIn(tmp_path / "hub") as running:
        point_clients_at(running, monkeypatch)
        yield running


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the clients at a port where nobody listens."""
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def contents(folder: Path) -> dict[str, bytes]:
    """Give the bytes of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_a_pushed_adapter_comes_back(
    hub: HubStandIn, tiny_base: Path, tmp_path: Path, private: object
) -> None:
    """The Hub holds the folder's bytes at the recorded commit, and the adapter loads from there."""
    model, record = trained(tiny_base, tmp_path)
    push = partial(push_adapter, repo_id="org/adapter", private=bool(private))
    saved = save_here(model, record, tmp_path, push)

    assert saved.hub_url is not None
    commit = saved.hub_url.rpartition("/")[2]
    pushed = hub.files("org/adapter", commit)
    pushed.pop(".gitattributes", None)
    assert pushed == contents(saved.folder)
    fresh, _ = loaded(tiny_base)
    load_adapter(fresh, "org/adapter", revision=commit)
    assert torch.equal(logits(fresh), logits(model))


def test_a_failing_push_leaves_the_folder(
    hub: HubStandIn, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the Hub cannot be reached, the error names the folder, which is complete."""
    model, record = trained(tiny_base, tmp_path)
    cut_off(monkeypatch)
    push = partial(push_adapter, repo_id="org/adapter", private=False)
    with pytest.raises(
        AdapterflowError, match=r"pushing .*/adapters/default to org/adapter failed"
    ):
        save_here(model, record, tmp_path, push)

    folder = tmp_path / "adapters" / "default"
    assert (folder / "manifest.json").is_file()
    fresh, _ = loaded(tiny_base)
    load_adapter(fresh, folder)
    assert torch.equal(logits(fresh), logits(model))


def test_a_refused_token_is_found_out(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained, a wrong token or none is an error that names HF_TOKEN."""
    check_push("org/adapter")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN"):
        check_push("org/adapter")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="needs a token: set HF_TOKEN"):
        check_push("org/adapter")


def test_an_unreachable_hub_is_no_wrong_token(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the check says that the Hub can't be reached."""
    cut_off(monkeypatch)
    with pytest.raises(AdapterflowError, match="can't be reached"):
        check_push("org/adapter")
