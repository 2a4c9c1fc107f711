"""YAML is read in bounded time, and what can't be read is one error with its line."""

import os
from pathlib import Path

import pytest

from tasks.config.reading import read_config
from tasks.config.yaml_text import InvalidYamlError, parse_yaml
from tasks.errors import LONGEST_MESSAGE, UserError

MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], y{n}: 1}}\n" for n in range(1, 40)
)
ALIAS_BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)
ALIAS_LADDER = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000))

REFUSED = {
    "empty hexadecimal": ("r: 0x_", "column 4: '0x_' is not an integer"),
    "empty binary": ("r: 0b_", "'0b_' is not an integer"),
    "a long integer": (f"r: {'9' * 5000}", "column 4: a number has 5,000 digits"),
    "a long hexadecimal": (f"r: 0x{'f' * 5000}", "a number has 5,002 digits"),
    "a long sexagesimal": (f"r: 1{':59' * 500}", "a number has 1,501 digits"),
    "a word as an integer": ("r: !!int abc", "'abc' is not an integer"),
    "a word as a number": ("r: !!float abc", "'abc' is not a number"),
    "a word as a truth value": ("r: !!bool maybe", "'maybe' is not true or false"),
    "a list as text": ("r: !!str [a]", "expected a scalar node"),
    "a timestamp": ("r: !!timestamp 2024-13-45", "timestamp is not supported; remove it"),
    "bytes": ("r: !!binary x", "binary is not supported"),
    "a set": ("r: !!set {a}", "set is not supported"),
    "a Python object": ("r: !!python/object:os.system x", "is not supported"),
    "nested brackets": ("r: " + "[" * 5000, "column 33: nested more than 30 levels deep"),
    "nested mappings": ("r: " + "{a: " * 5000, "nested more than 30 levels deep"),
    "nested dashes": ("- " * 5000, "nested more than 30 levels deep"),
    "a merge bomb": (MERGE_BOMB, "more than 20,000 values once aliases are replaced"),
    "an alias bomb": (ALIAS_BOMB, "more than 20,000 values once aliases are replaced"),
    "an alias ladder": (ALIAS_LADDER, "nested more than 30 levels deep through aliases"),
    "an alias to itself": ("r: &a [*a]", r"column 8: the alias \*a stands for what it is part of"),
    "a merge of itself": ("r: &a {<<: *a}", r"the alias \*a stands for what it is part of"),
    "an unknown alias": ("r: *a", "found undefined alias"),
    "many values": ("[" + "1," * 20_001 + "]", "more than 20,000 values"),
    "a long text": ("r: " + "x" * 600_000, "it has 600,003 characters"),
    "a number as a key": ("1: a", "column 1: the key 1 is not text; put it in quotes"),
    "a truth value as a key": ("true: a", "the key true is not text"),
    "nothing as a key": ("~: a", "the key ~ is not text"),
    "a list as a key": ("? [a]\n: b", "a key is a list or mapping"),
    "a long key": (f"{'k' * 900}: 1", "a key has 900 characters"),
    "a key given twice": ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: c is given twice"),
    "a tab": ("a:\n\tb: 1", "line 2, column 1: .*cannot start any token"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: .*another document"),
    "a long version": (f"%YAML {'9' * 5000}", "line 1, column 7"),
    "an impossible character": (r'a: "\U7fffffff"', "line 1, column 7"),
    "a NUL": ("a: 1\nb: \x00", r"line 2: the character U\+0000 is not allowed"),
    "a surrogate": ("a: \udcff", r"line 1: the character U\+DCFF is not allowed"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_configuration_is_refused_with_its_place(
    case: tuple[str, str], tmp_path: Path
) -> None:
    """The error of a text is one line, and the same in a file and in an override."""
    text, message = case
    with pytest.raises(InvalidYamlError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode(errors="surrogatepass").replace(b"\xed\xb3\xbf", b"\xff"))
    with pytest.raises(UserError, match=r"run\.yaml (is not valid YAML: |can't be read)"):
        read_config(file)
    file.write_text("{base_model: {source: x/y}, data: {train: x/y}}")
    with pytest.raises(UserError, match=r"--set .lora=.*: the value is not valid YAML: ") as told:
        read_config(file, [f"lora={text}"])
    assert len(str(told.value)) < LONGEST_MESSAGE


READ = {
    "an anchor": ("a: &a {r: 1}\nb: *a", {"a": {"r": 1}, "b": {"r": 1}}),
    "a merge": (
        "a: &a {r: 1, s: 2}\nb: {<<: *a, r: 3}",
        {"a": {"r": 1, "s": 2}, "b": {"r": 3, "s": 2}},
    ),
    "a merge that a deeper one overrides": (
        "x: {y: &a {<<: &b {k: 1}, k: 2}}\nc: {<<: *a}",
        {"x": {"y": {"k": 2}}, "c": {"k": 2}},
    ),
    "a byte order mark": ("\ufeffa: 1", {"a": 1}),
    "a date": ("a: 2024-01-01", {"a": "2024-01-01"}),
    "an equals sign": ("a: =", {"a": "="}),
    "a number in quotes as a key": ("'1': a", {"1": "a"}),
    "a hexadecimal number": ("a: 0x_1f", {"a": 31}),
    "JSON": ('{"a": [1, 2.5, null, true, "\\u00e9"]}', {"a": [1, 2.5, None, True, "é"]}),
}


@pytest.mark.parametrize("case", READ.values(), ids=READ.keys())
def test_what_yaml_allows_is_read(case: tuple[str, object]) -> None:
    """Aliases and merges within bounds mean what they mean in YAML."""
    text, value = case
    assert parse_yaml(text) == value


FILES = {
    "UTF-16": ("seed: 1".encode("utf-16"), "can't be read as UTF-8 text"),
    "UTF-16 without a mark": ("seed: 1".encode("utf-16-le"), r"U\+0000 is not allowed"),
    "Latin-1": ("a: ä".encode("latin-1"), "can't be read as UTF-8 text"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "can't be read as UTF-8 text"),
    "gigabytes": (None, "more than 2,000,000 bytes; a configuration has fewer"),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_text_is_refused(case: tuple[bytes | None, str], tmp_path: Path) -> None:
    """Other encodings and binary files are refused as such, and large files are not read."""
    content, message = case
    file = tmp_path / "run.yaml"
    if content is None:
        file.touch()
        os.truncate(file, 10**12)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(file)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """Reading a pipe without a writer, or an endless device, would never end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe or device; give a regular file"):
            read_config(place)


def test_an_override_in_a_shared_mapping_changes_one_section(tmp_path: Path) -> None:
    """A mapping that an alias puts in two places is overridden in one of them."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "base_model: {source: x/y}\ndata: {train: x/y}\n"
        "training: &same {batch_size: 4}\ninference: *same\n"
    )
    config = read_config(file, ["training.batch_size=8"])
    assert (config.training.batch_size, config.inference.batch_size) == (8, 4)
