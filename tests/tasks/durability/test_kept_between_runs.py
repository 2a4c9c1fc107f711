"""What is kept between runs is found by everything that it is a function of."""

import json
import shutil
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config
from plain_adapters import lora_folder
from tiny_gguf import gguf_base
from tiny_models import tiny_tokenizer

from tasks.config import TrainAdapterConfig
from tasks.durability.unchanged import fingerprint
from tasks.engine.base.base_models import load_tokenizer
from tasks.engine.base.gguf_conversion import converted_folder
from tasks.validate_inputs import check_inputs


def inputs(config: TrainAdapterConfig, folder: Path) -> str:
    """Return what a run of the configuration is found by."""
    found = check_inputs(config, folder)
    return fingerprint(config, found.data.record, found.lora.source)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """Copy the tiny base, to change it."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_equal_inputs_are_unchanged(base: Path, tmp_path: Path) -> None:
    """Wherever the rows are, and whenever they are tokenised."""
    config = tiny_config(base, sums(tmp_path / "a.jsonl"))
    moved = tiny_config(base, sums(tmp_path / "b.jsonl"))
    assert inputs(config, tmp_path / "1") == inputs(moved, tmp_path / "2")


def test_what_the_template_writes_is_part_of_it(base: Path, tmp_path: Path) -> None:
    """The same rows are other tokens on another day, where the chat template writes it."""
    found = []
    for day in ("Monday", "Tuesday"):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = f"It is {day}." + str(tokenizer.chat_template)
        tokenizer.save_pretrained(base)
        config = tiny_config(base, sums(tmp_path / "rows.jsonl", count=4))
        found.append(inputs(config, tmp_path / day))
    assert found[0] != found[1]


def test_a_template_of_the_user_is_part_of_it_and_its_place_is_not(
    base: Path, tmp_path: Path
) -> None:
    """What is saved with the adapter is its content, also where the rows do not show it."""
    written = str(tiny_tokenizer().chat_template)
    found = []
    for name, template in (("a", written), ("b", written), ("c", written + "{# else #}")):
        (tmp_path / f"{name}.jinja").write_text(template)
        config = tiny_config(base, sums(tmp_path / "rows.jsonl", count=4))
        own = {"chat_template": str(tmp_path / f"{name}.jinja")}
        data = config.data.model_copy(update=own)
        config = config.model_copy(update={"data": data})
        found.append(inputs(config, tmp_path / name))
    assert found[0] == found[1] != found[2]


def test_another_configuration_of_the_base_is_a_change(base: Path, tmp_path: Path) -> None:
    """The same weights with other rotations are another model."""
    config = tiny_config(base, sums(tmp_path / "rows.jsonl"))
    before = inputs(config, tmp_path / "1")
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 1e-3}))
    assert inputs(config, tmp_path / "2") != before


def test_the_adapter_to_begin_with_is_part_of_it_and_its_place_is_not(
    base: Path, tmp_path: Path
) -> None:
    """A run that begins with other weights is another, though both are found by one name."""
    data, source = sums(tmp_path / "rows.jsonl", count=4), tmp_path / "source"

    def found(seed: int, place: Path) -> str:
        lora_folder(base, place, seed=seed)
        lora: dict[str, object] = {"from": str(place), "r": None}
        return inputs(tiny_config(base, data, lora=lora), tmp_path / f"run-{seed}")

    first, moved = found(1, source), found(1, tmp_path / "moved")
    assert first == moved != found(2, source)


def test_a_tokenizer_that_changed_is_loaded_anew(base: Path) -> None:
    """A process that lives long sees the files as they are."""
    before = load_tokenizer(str(base), None)
    assert load_tokenizer(str(base), None) is before
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(base)
    assert load_tokenizer(str(base), None).chat_template == tokenizer.chat_template


def test_settings_beside_a_gguf_file_convert_it_anew(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers reads beside the file is part of what the conversion is found by."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "base.gguf"
    gguf_base(tiny_base, file, "llama")
    before = converted_folder(file)
    assert converted_folder(file) == before
    (file.parent / "generation_config.json").write_text('{"temperature": 0.5}')
    assert converted_folder(file) != before
