"""An adapter whose files are malformed is refused in one short message, before a base is loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line_runs import run_in_process
from safetensors.torch import load_file, save_file
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings, BaseModelSettings
from tasks.engine.adapters import name_patterns
from tasks.engine.adapters.folders import find_adapter
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of, check_adapters

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter for the tiny base; tests must not write to it."""
    return tiny_adapter(tiny_base, tmp_path_factory.mktemp("whole") / "adapter")


@pytest.fixture
def adapter(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the adapter, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "adapter"))


def use(adapter: Path, base: Path) -> None:
    """Find an adapter, and check it, as `predict` does before it loads the base."""
    found = find_adapter(adapter)
    base_of(found, str(base))
    settings = BaseModelSettings.model_validate({"source": str(base)})
    check_adapters(settings, [AdapterSettings(source=str(adapter))], [found])


def refusal(adapter: Path, base: Path) -> str:
    """Return the message with which `predict` refuses an adapter, before it loads the base."""
    with pytest.raises(UserError) as caught:
        use(adapter, base)
    return str(caught.value)


def check_told(message: str, told: str) -> None:
    """Check that a message has what it should, and is one short line."""
    assert re.search(told, message), message
    assert "\n" not in message
    assert len(message) < 1500


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "r's text": ({"r": "eight"}, 'r is "eight"; it must be an integer above 0'),
    "r's null": ({"r": None}, "r is null"),
    "r's zero": ({"r": 0}, "r is 0"),
    "r's truth": ({"r": True}, "r is true"),
    "absurd r": ({"r": 10**12}, "have another shape"),
    "alpha's text": ({"lora_alpha": "16"}, 'lora_alpha is "16"'),
    "negative alpha": ({"lora_alpha": -8}, "lora_alpha is -8; it must be a number above 0"),
    "alpha's NaN": ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
    "dropout's text": ({"lora_dropout": "0.1"}, 'lora_dropout is "0.1"'),
    "targets' numbers": ({"target_modules": [1, 2]}, r"target_modules is \[1, 2\]"),
    "targets' object": ({"target_modules": {"a": 1}}, "target_modules is"),
    "targets' pattern": ({"target_modules": "(["}, CONFIG),
    "ranks' pattern": (
        {"rank_pattern": {"((": 4}},
        "which is no regular expression",
    ),
    "too many targets": ({"target_modules": ["a"] * 10_001}, "up to 10,000 names"),
    "absurd alpha": ({"lora_alpha": 1e308}, "lora_alpha is 1e.308"),
    "unknown initialization": ({"init_lora_weights": "zeros"}, 'init_lora_weights is "zeros"'),
    "its Monte Carlo": ({"monteclora_config": 3}, "sets monteclora_config"),
    "no targets": ({"target_modules": None}, "4 weights are unexpected"),
    "unknown method": ({"peft_type": "MAGIC"}, 'peft_type is "MAGIC", which PEFT does not have'),
    "a method that can't be used": ({"peft_type": "VERA"}, "VERA, which can't be used here"),
    "another method": ({"peft_type": "IA3"}, "6 weights are missing, such as .*ia3_l"),
    "another method's text": ({"peft_type": "LOHA", "alpha": "8"}, 'alpha is "8"; it must be a'),
    "the method's number": ({"peft_type": 3}, "peft_type is 3"),
    "bias's truth": ({"bias": True}, "bias is true; it must be none, all or lora_only"),
    "DoRA's text": ({"use_dora": "yes"}, 'use_dora is "yes"; it must be true or false'),
    "ranks' list": ({"rank_pattern": ["q_proj"]}, "rank_pattern is"),
    "ranks' text": ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern is"),
    "layers' text": ({"layers_to_transform": "all"}, 'layers_to_transform is "all"'),
    "the base's number": ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
    "no such module": ({"modules_to_save": ["nope"]}, "has no weights of nope"),
    "modules' numbers": ({"modules_to_save": [3]}, "modules_to_save is"),
    "the initialization's number": ({"init_lora_weights": 3}, "init_lora_weights is 3"),
    "tokens' texts": ({"trainable_token_indices": ["a"]}, "trainable_token_indices is"),
}


@pytest.mark.parametrize(("changes", "told"), CONFIGS.values(), ids=list(CONFIGS))
def test_an_impossible_setting_is_refused(
    adapter: Path, tiny_base: Path, changes: dict[str, Any], told: str
) -> None:
    """A setting that LoRA can't have is refused with its value and with what is possible."""
    file = adapter / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    check_told(refusal(adapter, tiny_base), told)


ENDLESS = "(([a-z_.0-9]+)+)+!"
"""It tries an exponential number of ways to match a name."""


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"layers_pattern": [ENDLESS], "layers_to_transform": [0]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_endless_pattern_is_refused(
    adapter: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """A regular expression comes with the adapter, and nothing could interrupt it here."""
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    file = adapter / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    check_told(refusal(adapter, tiny_base), f"{next(iter(changes))}.* can't be tried on the base's")


CONTENTS = {
    "a list": (CONFIG, "[]", r"contains \[\]"),
    "null": (CONFIG, "null", "contains null"),
    "empty": (CONFIG, "", "is empty"),
    "cut": (CONFIG, '{"r": 4, "peft', "Unterminated"),
    "without a method": (CONFIG, "{}", "peft_type is missing"),
    "weights that are empty": (WEIGHTS, "", "is empty"),
    "weights that are a text": (WEIGHTS, "version https://git-lfs.github.com", "truncated"),
    "a manifest's list": (MANIFEST, "[]", r"contains \[\]"),
    "a manifest's text": (MANIFEST, '{"files": "all"}', 'files is "all"'),
    "a manifest's numbers": (MANIFEST, '{"files": {"a": 1}}', "files is"),
    "a manifest's base": (MANIFEST, '{"base_model": "org/base"}', 'base_model is "org/base"'),
    "its classes": (MANIFEST, '{"base_model": {"labels": "a"}}', 'base_model: labels is "a"'),
    "its class numbers": (MANIFEST, '{"base_model": {"labels": [1]}}', "base_model: labels is"),
    "its reference": (MANIFEST, '{"base_model": {"reference": 3}}', "reference is 3"),
    "its task": (MANIFEST, '{"base_model": {"task": "magic", "source": "a"}}', "magic"),
    "a manifest's template": (MANIFEST, '{"template": "jinja"}', 'template is "jinja"'),
    "a manifest's tokenizer": (MANIFEST, '{"tokenizer": ["a"]}', "tokenizer is"),
    "a manifest's chat": (MANIFEST, '{"chat": 3}', "chat is 3"),
    "its variables": (MANIFEST, '{"chat": {"chat_template_kwargs": 3}}', "chat is"),
    "an empty identity": (MANIFEST, '{"tokenizer": {"vocabulary": "a"}}', "tokenizer is"),
}


@pytest.mark.parametrize(("file", "content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_another_content_is_refused(
    adapter: Path, tiny_base: Path, file: str, content: str, told: str
) -> None:
    """A file that is something else than it should be is named, with what is in it."""
    (adapter / file).write_text(content)
    check_told(refusal(adapter, tiny_base), told)


def test_names_from_a_file_are_printed_as_text(adapter: Path, tiny_base: Path) -> None:
    """What a terminal would obey is escaped wherever a message repeats it."""
    file = adapter / WEIGHTS
    save_file({**load_file(file), "a\0\x1b[31m": torch.zeros(1)}, file)
    check_told(refusal(adapter, tiny_base), r"a\\x00\\x1b")


def test_a_manifest_that_is_no_file_is_refused(adapter: Path, tiny_base: Path) -> None:
    """Without its manifest, an adapter would not be checked as it should be."""
    (adapter / MANIFEST).symlink_to("gone")
    check_told(refusal(adapter, tiny_base), "symbolic link to gone")


def cut(file: Path) -> None:
    """Cut a file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def to_integers(file: Path) -> None:
    """Write the weights as integers."""
    weights = {key: (100 * value).to(torch.int32) for key, value in load_file(file).items()}
    save_file(weights, file)


def to_nan(file: Path, dtype: torch.dtype = torch.float32) -> None:
    """Put a NaN into one weight."""
    weights = {key: value.to(dtype) for key, value in load_file(file).items()}
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, file)


def to_bfloat16_infinity(file: Path) -> None:
    """Put an infinity into one weight of two bytes."""
    weights = {key: value.to(torch.bfloat16) for key, value in load_file(file).items()}
    next(iter(weights.values()))[0, 0] = float("inf")
    save_file(weights, file)


def to_folder(file: Path) -> None:
    """Put a folder in a file's place."""
    file.unlink()
    file.mkdir()


def name_no_module(file: Path) -> None:
    """Name a module to save that no model has."""
    config = file.with_name(CONFIG)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["nope"]}))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "truncated"),
    "integers": (to_integers, "is I32; an adapter's weights must be floating-point"),
    "NaN": (to_nan, "has a NaN or an infinity"),
    "infinity": (to_bfloat16_infinity, "has a NaN or an infinity"),
    "a folder": (to_folder, "is a folder"),
    "no such module": (name_no_module, "modules_to_save is"),
}


@pytest.mark.parametrize(("spoil", "told"), SPOILED.values(), ids=SPOILED)
def test_export_refuses_what_no_base_could_use(  # noqa: PLR0913 - a run of the command
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    told: str,
) -> None:
    """An adapter is only copied if it could be loaded, and nothing is written otherwise."""
    spoil(adapter / WEIGHTS)
    target = tmp_path / "exported"
    status, _, errors = run_in_process(capsys, monkeypatch, "export", adapter, target)
    assert status == 2
    check_told(errors.strip(), told)
    assert not target.exists()


def test_half_precision_weights_are_finite(adapter: Path) -> None:
    """Weights of two bytes are judged by their values, not by their bytes."""
    file = adapter / WEIGHTS
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
        assert find_adapter(adapter).shapes
