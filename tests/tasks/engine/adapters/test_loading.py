"""Step 6: a saved adapter loads strictly, switches on and off exactly, and trains nothing."""

import math
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from engine_steps import gpt2_base, loaded, logits
from hub_stand_in import HubStandIn, point_clients_at
from module_visits import counted_visits
from safetensors.torch import load_file, save_file
from tiny_models import tiny_adapter, tiny_llama

from tasks.config import AdapterSettings, BaseModelSettings
from tasks.engine.adapters.activation import (
    adapters_disabled,
    disable_adapters,
    enable_adapters,
    switch_adapter,
)
from tasks.engine.adapters.injection import trainable
from tasks.engine.adapters.loading import load_adapter, load_folder, verify_same
from tasks.errors import UserError, VerificationError
from tasks.inference.adapters_on_base import found_adapters


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running fake Hub that this process takes for the real one."""
    with HubStandIn(tmp_path / "hub") as running:
        point_clients_at(running, monkeypatch)
        yield running


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Save two adapters for the base."""
    folder = tmp_path_factory.mktemp("adapters")
    return [tiny_adapter(tiny_base, folder / str(n), seed=n, r=2 * n) for n in (1, 2)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits of a fresh base with one adapter."""
    model, _ = loaded(base)
    load_adapter(model, adapter)
    return logits(model)


def test_a_folder_loads_as_peft_reads_it(tiny_base: Path, adapters: list[Path]) -> None:
    """The model answers as PEFT's own loading of the same folder does."""
    from peft import PeftModel

    reference = PeftModel.from_pretrained(loaded(tiny_base)[0], str(adapters[0]))
    with torch.no_grad():
        expected = reference.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits

    assert torch.equal(alone(tiny_base, adapters[0]), expected)
    assert not torch.equal(expected, logits(loaded(tiny_base)[0]))


def test_a_hub_id_loads_at_its_revision(
    hub: HubStandIn, tiny_base: Path, adapters: list[Path]
) -> None:
    """An older commit of an adapter on the Hub gives that commit's weights, `main` the newest."""
    first = hub.add_repo("org/adapter", contents(adapters[0]))
    hub.add_repo("org/adapter", contents(adapters[1]))
    model, _ = loaded(tiny_base)
    load_adapter(model, "org/adapter", "old", revision=first)
    load_adapter(model, "org/adapter", "new")

    assert torch.equal(logits(model), alone(tiny_base, adapters[1]))
    switch_adapter(model, "old")
    assert torch.equal(logits(model), alone(tiny_base, adapters[0]))


def test_a_revision_stands_behind_a_hub_id(
    hub: HubStandIn, tiny_base: Path, adapters: list[Path]
) -> None:
    """`org/name@commit` is that commit of the adapter, in every command."""
    first = hub.add_repo("org/adapter", contents(adapters[0]))
    hub.add_repo("org/adapter", contents(adapters[1]))
    wanted = [AdapterSettings(source=f"org/adapter@{first}")]
    with found_adapters(wanted) as (found,):
        model, _ = loaded(tiny_base)
        load_folder(model, found, "default")
    assert torch.equal(logits(model), alone(tiny_base, adapters[0]))


def test_what_the_hub_does_not_have_is_refused(hub: HubStandIn, tiny_base: Path) -> None:
    """An unknown adapter on the Hub is one error that names it."""
    with pytest.raises(UserError, match="org/nothing"):
        load_adapter(loaded(tiny_base)[0], "org/nothing")


def test_a_mistyped_folder_with_one_slash_is_a_mistake(tiny_base: Path) -> None:
    """What can't be a Hub id is looked for here only, and the message names both ways."""
    with pytest.raises(UserError, match=r"my out/run 1 is not a folder; give .* Hub id"):
        load_adapter(loaded(tiny_base)[0], "my out/run 1")


def test_a_whole_model_is_no_adapter(tiny_base: Path) -> None:
    """A base's folder is refused where an adapter is wanted."""
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        load_adapter(loaded(tiny_base)[0], tiny_base)


@pytest.mark.parametrize("shape", [{"layers": 3}, {"layers": 1}, {"hidden_size": 64}], ids=str)
def test_an_adapter_for_another_shape_is_refused(
    tmp_path: Path, adapters: list[Path], shape: dict[str, int]
) -> None:
    """An adapter for more layers, fewer layers or another width does not load in part."""
    base = tiny_llama(tmp_path, **shape)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(loaded(base)[0], adapters[0])


def test_an_adapter_for_another_architecture_is_refused(
    tmp_path: Path, adapters: list[Path]
) -> None:
    """An adapter whose targets the base does not have is refused."""
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(loaded(gpt2_base(tmp_path))[0], adapters[0])


def test_an_incomplete_adapter_is_refused(
    tiny_base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    """A file that lacks one of the adapter's weights is refused by that weight's name."""
    folder = Path(shutil.copytree(adapters[0], tmp_path / "holey"))
    weights = load_file(folder / "adapter_model.safetensors")
    gone = next(key for key in weights if "layers.1" in key and "q_proj.lora_B" in key)
    del weights[gone]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 weights are missing.*layers\.1\.self_attn\.q_proj\.lora_B"
    ):
        load_adapter(loaded(tiny_base)[0], folder)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_broken_weights_file_is_refused(
    tiny_base: Path, adapters: list[Path], tmp_path: Path, damage: str
) -> None:
    """A truncated or missing weights file is an error that names the adapter."""
    folder = Path(shutil.copytree(adapters[0], tmp_path / "broken"))
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(data[:200])
    with pytest.raises(UserError, match="broken"):
        load_adapter(loaded(tiny_base)[0], folder)


def test_switching_off_gives_the_base_exactly(tiny_base: Path, adapters: list[Path]) -> None:
    """Disabled, the model answers as its base; enabled again, as its adapter, bit for bit."""
    model, _ = loaded(tiny_base)
    base = logits(model)
    load_adapter(model, adapters[0])
    adapted = logits(model)

    disable_adapters(model)
    assert torch.equal(logits(model), base)
    enable_adapters(model)
    assert torch.equal(logits(model), adapted)
    with adapters_disabled(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("names", [("first", "second"), ("a", "proj"), ("lora_A", "weight")])
def test_switching_between_adapters_is_exact(
    tiny_base: Path, adapters: list[Path], names: tuple[str, str]
) -> None:
    """Two adapters on one model, whatever their names, each answer as if loaded alone."""
    model, _ = loaded(tiny_base)
    expected = {}
    for name, folder in zip(names, adapters, strict=True):
        load_adapter(model, folder, name)
        expected[name] = alone(tiny_base, folder)

    assert torch.equal(logits(model), expected[names[1]])
    for name in (*names, *names):
        switch_adapter(model, name)
        assert torch.equal(logits(model), expected[name])
    assert trainable(model) == []


def whole_head_adapter(base: Path, folder: Path, seed: int) -> Path:
    """Save an adapter that brings an output layer of its own."""
    from peft import LoraConfig

    model, _ = loaded(base)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    )
    model.add_adapter(config)
    model.get_parameter("lm_head.modules_to_save.default.weight").data.normal_()
    model.save_pretrained(folder)
    return folder


def test_whole_modules_are_switched_along(tiny_base: Path, tmp_path: Path) -> None:
    """What an adapter trained whole comes and goes with it, on, off and between two of them."""
    folders = [whole_head_adapter(tiny_base, tmp_path / str(seed), seed) for seed in (1, 2)]
    model, _ = loaded(tiny_base)
    base = logits(model)
    for name, folder in zip("ab", folders, strict=True):
        load_adapter(model, folder, name)
    for name, folder in zip("abab", folders * 2, strict=True):
        disable_adapters(model)
        switch_adapter(model, name)
        assert torch.equal(logits(model), alone(tiny_base, folder))
        with adapters_disabled(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), alone(tiny_base, folder))


def test_one_more_adapter_is_no_more_work(
    tiny_base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further adapter adds to loading and switching a few modules a layer, and is exact."""
    given = {"source": str(tiny_base), "dtype": "bfloat16"}
    settings = BaseModelSettings.model_validate(given)
    model, _ = loaded(tiny_base, settings)
    of_loading, of_switching = [], []
    visits = counted_visits(monkeypatch)
    for number in range(6):
        load_adapter(model, adapters[number % 2], f"adapter-{number}")
        of_loading.append(visits())
        switch_adapter(model, "adapter-0")
        of_switching.append(visits())
    num_layers = 4
    # From the third on, of which each has a sibling.
    for counts in (of_loading[2:], of_switching[2:]):
        assert all(later - one <= 8 * num_layers for one, later in pairwise(counts)), counts
        assert counts[-1] < of_loading[0] / 2
    expected = []
    for adapter in adapters:
        single, _ = loaded(tiny_base, settings)
        load_adapter(single, adapter)
        expected.append(logits(single))
    for number in range(6):
        switch_adapter(model, f"adapter-{number}")
        assert torch.equal(logits(model), expected[number % 2])


def test_an_unknown_name_lists_the_known(tiny_base: Path, adapters: list[Path]) -> None:
    """Switching to an adapter that is not there says which are."""
    model, _ = loaded(tiny_base)
    with pytest.raises(UserError, match="'tickets'; it has none"):
        switch_adapter(model, "tickets")
    for name, folder in zip(("first", "second"), adapters, strict=True):
        load_adapter(model, folder, name)
    with pytest.raises(UserError, match="'tickets'; it has first, second"):
        switch_adapter(model, "tickets")


def test_a_taken_name_is_refused(tiny_base: Path, adapters: list[Path]) -> None:
    """A second adapter under the same name does not replace the first."""
    model, _ = loaded(tiny_base)
    load_adapter(model, adapters[0])
    before = logits(model)
    with pytest.raises(UserError, match="load under another name"):
        load_adapter(model, adapters[1])
    assert torch.equal(logits(model), before)


def test_nothing_trains_after_loading(tiny_base: Path, adapters: list[Path]) -> None:
    """A loaded adapter is frozen as its base is, also after switching it off and on."""
    model, _ = loaded(tiny_base)
    load_adapter(model, adapters[0])
    with adapters_disabled(model):
        assert trainable(model) == []
    switch_adapter(model, "default")
    assert trainable(model) == []


def test_loading_says_nothing_alarming(
    tiny_base: Path, adapters: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A second adapter that loads well is not reported as newly initialised weights."""
    model, _ = loaded(tiny_base)
    for name, folder in zip("ab", adapters, strict=True):
        load_adapter(model, folder, name)
    assert "newly initialized" not in caplog.text


def test_different_logits_are_told_apart() -> None:
    """A difference above the tolerated share of the largest logit is an error, one below is not."""
    verify_same(0.9e-3, 10.0, "two models")
    with pytest.raises(VerificationError, match=r"two models: logits differ by 0\.002 of 10"):
        verify_same(2e-3, 10.0, "two models")


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (0.0, math.nan), (math.inf, 1.0)])
def test_what_is_no_number_is_not_the_same(numbers: tuple[float, float]) -> None:
    """Logits that overflowed agree with nothing."""
    with pytest.raises(VerificationError, match="logits differ"):
        verify_same(*numbers, "two models")
