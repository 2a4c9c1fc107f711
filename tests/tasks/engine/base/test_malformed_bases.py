"""A base whose files are malformed is refused in one short message, before a weight is read."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import gguf_base

from tasks.config import BaseModelSettings, RowFormat, TrainAdapterConfig
from tasks.engine.base.base_models import load_base
from tasks.engine.base.sources import find_base
from tasks.errors import UserError
from tasks.validate_inputs import check_base_early

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
HUGE = 10**12


def refusal(source: Path) -> str:
    """Return the message with which `train` refuses a base, while its server starts."""
    config = TrainAdapterConfig.model_validate(
        {"base_model": {"source": str(source)}, "data": {"train": "rows.jsonl"}}
    )
    with pytest.raises(UserError) as caught:
        check_base_early(config, [RowFormat.MESSAGES])
    return str(caught.value)


def copied(base: Path, folder: Path) -> Path:
    """Return a copy of a base, to be spoiled."""
    return Path(shutil.copytree(base, folder / "spoiled"))


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Change the keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CONTENTS = {
    "null": (CONFIG, "null", "contains null"),
    "a list": (CONFIG, "[]", r"contains \[\]"),
    "a string": (CONFIG, '"llama"', 'contains "llama"'),
    "empty": (CONFIG, "", "is empty"),
    "cut": (CONFIG, '{"model_type": "lla', "Unterminated string"),
    "no text": (CONFIG, b"\xff\xfe", "can't decode"),
    "nested": (CONFIG, "[" * 100_000, "recursion"),
    "a tokenizer's list": (TOKENIZER, "[]", r"contains \[\]"),
    "a tokenizer's null": (TOKENIZER, "null", "contains null"),
    "a tokenizer without a model": (TOKENIZER, '{"version": "1.0"}', "tokenizer.json"),
    "a cut tokenizer": (TOKENIZER, '{"version": "1.0", "mod', "Unterminated string"),
    "the settings' list": (SETTINGS, "[]", r"contains \[\]"),
    "the settings' number": (SETTINGS, "3", "contains 3"),
    "the settings' null": (SETTINGS, "null", "contains null"),
    "special tokens' list": ("special_tokens_map.json", '["<s>"]', "contains"),
    "generation's list": ("generation_config.json", "[]", r"contains \[\]"),
    "generation's cut": ("generation_config.json", '{"eos_tok', "Unterminated"),
    "generation's text": ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id is"),
    "generation's absurd end": (GENERATION, f'{{"eos_token_id": {HUGE}}}', "eos_token_id is"),
    "generation's nested end": (GENERATION, '{"eos_token_id": [[1]]}', r"eos_token_id is \[\[1"),
    "generation's list in a text": (GENERATION, '{"suppress_tokens": "x"}', "suppress_tokens is"),
    "generation's stop": (GENERATION, '{"stop_strings": 3}', "stop_strings is 3"),
    "a template in Latin-1": (TEMPLATE, "caf\xe9".encode("latin-1"), "can't decode"),
    "an empty template": (TEMPLATE, "", "is empty"),
    "weights that are empty": (WEIGHTS, b"", "is empty"),
    "weights' header beyond the file": (WEIGHTS, b"\xff" * 6 + b"\0\0{}", "header"),
    "weights that are a text": (WEIGHTS, b"version https://git-lfs.github.com/spec/v1", "header"),
}
"""By name: a file, what it contains instead, and what the message has."""


@pytest.mark.parametrize(("file", "content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_another_content_is_refused(
    tiny_base: Path, tmp_path: Path, file: str, content: str | bytes, told: str
) -> None:
    """A file that is something else than it should be is named, with what is in it."""
    folder = copied(tiny_base, tmp_path)
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    message = refusal(folder)
    assert file in message
    check_told(message, told)


def check_told(message: str, told: str) -> None:
    """Check that a message has what it should, and is one short line."""
    assert re.search(told, message), message
    assert "\n" not in message
    assert len(message) < 1500


SETTINGS_OF_CONFIG = {
    "negative size": ({"hidden_size": -32}, "hidden_size is -32"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "absurd size": ({"hidden_size": HUGE}, f"hidden_size is {HUGE}"),
    "absurd layers": ({"num_hidden_layers": HUGE}, "integer from 1 to 1,000"),
    "thousands of layers": ({"num_hidden_layers": 9999}, "integer from 1 to 1,000"),
    "absurd classes": ({"num_labels": HUGE}, "num_labels is"),
    "outputs without names": ({"return_dict": False}, "return_dict is false"),
    "weights elsewhere": ({"transformers_weights": CONFIG}, "name of a safetensors file"),
    "weights' NUL": ({"transformers_weights": "a\0.safetensors"}, "name of a safetensors file"),
    "many layers": ({"num_hidden_layers": 100}, r"lacks \d+ weights"),
    "absurd vocabulary": ({"vocab_size": HUGE}, "vocab_size is"),
    "absurd positions": ({"max_position_embeddings": HUGE}, "max_position_embeddings is"),
    "a text for a number": ({"hidden_size": "32"}, 'hidden_size is "32"'),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers is true"),
    "heads that do not divide": ({"num_attention_heads": 5}, "not a multiple"),
    "key heads that do not divide": ({"num_key_value_heads": 3}, "k_proj.weight"),
    "another size": ({"intermediate_size": 65}, r"\[32, 64\] in the file, \[32, 65\]"),
    "another vocabulary": ({"vocab_size": 401}, r"\[382, 32\] in the file, \[401, 32\]"),
    "unknown activation": ({"hidden_act": "zelu"}, 'hidden_act is "zelu", did you mean .*gelu'),
    "activation's number": ({"hidden_act": 3}, "hidden_act"),
    "RoPE's list": ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    "RoPE's unknown type": ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
    "RoPE's text": (
        {"rope_parameters": {"rope_type": "linear", "factor": "big", "rope_theta": 1e4}},
        'factor is "big"',
    ),
    "RoPE's zero": (
        {"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}},
        "factor is 0; it must be a number above 0",
    ),
    "unknown dtype": ({"dtype": "float99"}, "float99"),
    "dtype's number": ({"dtype": 3}, "dtype"),
    "unknown architecture": ({"model_type": "no-such-thing"}, "no-such-thing"),
    "architecture's list": ({"model_type": ["llama"]}, "model_type is"),
    "quantization's text": ({"quantization_config": "4bit"}, 'quantization_config is "4bit"'),
    "unknown quantization": (
        {"quantization_config": {"quant_method": "magic"}},
        "quantization_config.*magic",
    ),
    "quantization without a method": ({"quantization_config": {}}, "quant_method"),
}
"""By name: changes of config.json, and what the message has."""


@pytest.mark.parametrize(
    ("changes", "told"), SETTINGS_OF_CONFIG.values(), ids=list(SETTINGS_OF_CONFIG)
)
def test_an_impossible_setting_is_refused(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """A setting that no model can have is refused with its value and with what is possible."""
    folder = copied(tiny_base, tmp_path)
    edit(folder / CONFIG, changes)
    check_told(refusal(folder), told)


def to_folder(file: Path) -> None:
    """Put a folder in a file's place."""
    file.unlink()
    file.mkdir()


def to_dangling_link(file: Path) -> None:
    """Put a link to nothing in a file's place."""
    file.unlink()
    file.symlink_to(file.with_name("nothing.safetensors"))


def cut(file: Path) -> None:
    """Cut a file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def to_int32(file: Path) -> None:
    """Write the weights as integers."""
    weights = {key: (100 * value).to(torch.int32) for key, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def to_another_shape(file: Path) -> None:
    """Cut a row from a weight."""
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(63, 32)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, SETTINGS, GENERATION, TEMPLATE, WEIGHTS])
@pytest.mark.parametrize("target", ["", "gone"], ids=["a loop", "to nothing"])
def test_a_link_that_leads_nowhere_is_refused(
    tiny_base: Path, tmp_path: Path, name: str, target: str
) -> None:
    """Transformers takes a file that it can't find for one that the model does not have."""
    folder = copied(tiny_base, tmp_path)
    (folder / name).unlink()
    (folder / name).symlink_to(target or name)
    check_told(refusal(folder), name.replace(".", r"\."))


WEIGHT_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (to_folder, "is a folder"),
    "a link to nothing": (to_dangling_link, "which does not exist"),
    "cut": (cut, "may be truncated"),
    "integers": (to_int32, "is I32; a weight must be a floating-point number"),
    "another shape": (
        to_another_shape,
        r"layers\.1\.mlp\.up_proj\.weight: \[63, 32\] in the file, \[64, 32\] by",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), WEIGHT_FILES.values(), ids=WEIGHT_FILES)
def test_weights_that_can_not_be_read_are_refused(
    tiny_base: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    """A weights file is judged by its header, before the model is loaded."""
    folder = copied(tiny_base, tmp_path)
    spoil(folder / WEIGHTS)
    check_told(refusal(folder), told)


INDEXES = {
    "a list": ([], "contains"),
    "empty": ({}, "weight_map is null"),
    "without a map": ({"metadata": {}}, "weight_map is null"),
    "a map that is a list": ({"weight_map": ["model.safetensors"]}, "weight_map is"),
    "a number for a file": ({"weight_map": {"lm_head.weight": 3}}, "has 3 for lm_head.weight"),
    "elsewhere": (
        {"weight_map": {"lm_head.weight": "../x.safetensors"}},
        "beside the index",
    ),
    "absolute": ({"weight_map": {"lm_head.weight": "/etc/passwd"}}, "beside the index"),
    "itself": ({"weight_map": {"a": INDEX}}, "beside the index"),
    "the folder above": ({"weight_map": {"a": ".."}}, "beside the index"),
    "no name": ({"weight_map": {"a": ""}}, "beside the index"),
    "a NUL": ({"weight_map": {"a": "x\0.safetensors"}}, "beside the index"),
    "a long name": ({"weight_map": {"a": f"{'x' * 300}.bin"}, "metadata": {}}, "name too long"),
    "without metadata": ({"weight_map": {"a": "model-00001.safetensors"}}, "metadata is null"),
    "missing": ({"weight_map": {"a": "model-9.safetensors"}, "metadata": {}}, "does not exist"),
}


@pytest.mark.parametrize(("index", "told"), INDEXES.values(), ids=INDEXES)
def test_a_malformed_index_is_refused(
    tiny_base: Path, tmp_path: Path, index: object, told: str
) -> None:
    """An index has to name files beside it that exist."""
    folder = copied(tiny_base, tmp_path)
    (folder / WEIGHTS).rename(folder / "model-00001.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    check_told(refusal(folder), told)


def test_a_base_in_parts_is_accepted(tiny_base: Path, tmp_path: Path) -> None:
    """An index that names all parts is accepted."""
    folder = copied(tiny_base, tmp_path)
    (folder / WEIGHTS).rename(folder / "model-00001.safetensors")
    keys = load_file(folder / "model-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "model-00001.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    assert load_base(find_base(settings_for(folder))).num_parameters() > 0


def settings_for(folder: Path) -> BaseModelSettings:
    """Return settings for a folder."""
    return BaseModelSettings.model_validate({"source": str(folder)})


TEMPLATES = {
    "a number": (3, "chat_template is 3; it must be a template's text"),
    "a list of texts": (["{{ messages }}"], "chat_template is"),
    "an object": ({"default": "{{ messages }}"}, "chat_template is"),
    "unfinished": ("{% for m in messages %}", "is not a template: Unexpected end"),
}


@pytest.mark.parametrize(("template", "told"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_is_none_is_refused(
    tiny_base: Path, tmp_path: Path, template: object, told: str
) -> None:
    """A chat template is one text or several named ones."""
    folder = copied(tiny_base, tmp_path)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / SETTINGS, {"chat_template": template})
    check_told(refusal(folder), told)


GGUF = {
    "empty": (lambda given: given[:0], "is empty"),
    "another file": (lambda given: b"PK" + given, "begins with"),
    "cut in its header": (lambda given: given[:500], "truncated"),
    "cut in its counts": (lambda given: given[:14], "ends within"),
    "absurd tensors": (lambda given: given[:8] + b"\xff" * 7 + b"\0" + given[16:], "tensors in"),
    "absurd fields": (lambda given: given[:16] + b"\xff" * 7 + b"\0" + given[24:], "fields in"),
    "an absurd text": (lambda given: given[:24] + b"\xff" * 7 + b"\0" + given[32:], "ends within"),
    "cut in its weights": (lambda given: given[:-5000], "cannot read"),
}


@pytest.mark.parametrize(("spoil", "told"), GGUF.values(), ids=GGUF)
def test_a_malformed_gguf_file_is_refused(
    tiny_base: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], told: str
) -> None:
    """A GGUF file's counts have to fit the file, before a library believes them."""
    file = gguf_base(tiny_base, tmp_path / "whole.gguf", "llama")
    spoiled = tmp_path / "spoiled.gguf"
    spoiled.write_bytes(spoil(file.read_bytes()))
    check_told(refusal(spoiled), told)
