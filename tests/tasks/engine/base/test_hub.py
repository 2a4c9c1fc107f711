"""Pushing an adapter to the Hub: the same bytes, or a clear error and a complete local folder."""

import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line_runs import run_in_process
from engine_steps import loaded, logits, prepared, save_here, trained
from hub_stand_in import HubStandIn, point_clients_at
from tiny_models import tiny_adapter

from tasks.config import OutputSettings
from tasks.engine.adapters.loading import load_adapter
from tasks.engine.adapters.model_card import write_card
from tasks.engine.base.hub import check_push, push_adapter
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
    """Return the bytes of a folder's files."""
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


def test_the_command_pushes_the_adapter_and_nothing_else(
    hub: HubStandIn,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What else lies beside the adapter stays here; what was pushed loads by id and revision."""
    model, record = trained(tiny_base, tmp_path)
    folder = save_here(model, record, tmp_path).folder
    pushed = contents(folder)
    (folder / "checkpoint-1").mkdir()
    for extra in ("optimizer.pt", ".env", "checkpoint-1/tokenizer.json"):
        (folder / extra).write_text("secret")
    status, out, err = run_in_process(capsys, monkeypatch, "push", folder, "org/adapter")
    assert status == 0, err
    assert "names the base by its local path" in err
    commit = out.strip().rpartition("/")[2]
    files = hub.files("org/adapter", commit)
    files.pop(".gitattributes", None)
    assert files == pushed
    fresh, _ = loaded(tiny_base)
    load_adapter(fresh, "org/adapter", revision=commit)
    assert torch.equal(logits(fresh), logits(model))


def test_an_adapter_goes_from_one_repository_to_another(
    hub: HubStandIn,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its card comes along; of an adapter that was there before only a card stays."""
    ours = save_here(*trained(tiny_base, tmp_path), tmp_path).folder
    plain = tiny_adapter(tiny_base, tmp_path / "plain")
    assert run_in_process(capsys, monkeypatch, "push", ours, "org/ours")[0] == 0
    assert run_in_process(capsys, monkeypatch, "export", "org/ours", tmp_path / "pulled")[0] == 0
    assert contents(tmp_path / "pulled") == contents(ours)
    status, out, _ = run_in_process(capsys, monkeypatch, "push", plain, "org/ours")
    assert status == 0
    files = hub.files("org/ours", out.strip().rpartition("/")[2])
    files.pop(".gitattributes", None)
    kept = {"README.md": files.pop("README.md")}
    assert kept.items() <= contents(ours).items()
    assert files.items() <= contents(plain).items()


@pytest.mark.parametrize("token", ["hf_right", "hf_wrong"])
def test_the_token_is_in_no_log(  # noqa: PLR0913 - fixtures
    hub: HubStandIn,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
) -> None:
    """Neither a push nor its refusal says the token, even with every library at its loudest."""
    secret = hub.token if token == "hf_right" else "hf_wrongAndSecret"  # noqa: S105 - the test's
    monkeypatch.setenv("HF_TOKEN", secret)
    model, record = trained(tiny_base, tmp_path)
    folder = save_here(model, record, tmp_path).folder
    caplog.set_level(logging.DEBUG)
    status, out, err = run_in_process(capsys, monkeypatch, "push", folder, "org/adapter")
    assert status == (0 if token == "hf_right" else 2)  # noqa: S105
    assert caplog.records
    assert secret not in caplog.text + out + err
    assert all(secret.encode() not in file for file in contents(folder).values())


def test_the_card_tells_the_base_s_licence(tiny_base: Path, tmp_path: Path) -> None:
    """Unless one is set, the licence is what the base's own card says, its name and link too."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    told = "license: other\nlicense_name: llama3\nlicense_link: https://example.org/licence\n"
    (base / "README.md").write_text(f"---\n{told}---\n# A base\n")
    _, record = trained(base, tmp_path)
    data = prepared(record.injected.lora.base, tmp_path).record
    assert told in write_card(record, data, OutputSettings())
    own = write_card(record, data, OutputSettings(license="mit"))
    assert "license: mit" in own
    assert "llama3" not in own


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


def test_a_client_in_offline_mode_is_told(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tests run offline: a push names the variable, with exit status 2."""
    monkeypatch.setenv("HF_TOKEN", "token")
    adapter = tiny_adapter(tiny_base, tmp_path / "adapter")
    status, out, err = run_in_process(capsys, monkeypatch, "push", adapter, "org/adapter")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith("unset HF_HUB_OFFLINE")


def test_a_token_that_no_header_can_have_is_a_mistake(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is not ASCII is refused before the training, as a wrong one is."""
    monkeypatch.setenv("HF_TOKEN", "tökén")
    with pytest.raises(UserError, match="can't be reached to push to org/adapter"):
        check_push("org/adapter")
