"""Whatever stands in a configuration: it is read, or refused in a short message with the place."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.config import PredictBatchConfig, RetrainAdapterConfig, TrainAdapterConfig
from tasks.config.mistakes import section_of, sections
from tasks.config.reading import read_settings
from tasks.config.section import Section
from tasks.errors import LONGEST_MESSAGE, UserError

DRAWN = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALLEST: dict[type[Section], dict[str, Any]] = {
    TrainAdapterConfig: {
        "base_model": {"source": "org/base"},
        "data": {"train": "org/rows"},
    },
    RetrainAdapterConfig: {
        "base_model": {"source": "org/base"},
        "data": {"train": "org/rows"},
        "evaluation": {"rows": "held-out.jsonl", "sha256": "0" * 64},
        "registry": {"name": "tickets"},
    },
    PredictBatchConfig: {"adapters": [{"source": "org/adapter"}], "input": "rows.jsonl"},
}
KINDS = st.sampled_from(list(SMALLEST))

PIECES = st.sampled_from(
    [
        *("\n", "\n  ", "\t", " ", ": ", ":", "- ", "? ", ", ", "{", "}", "[", "]", "#", "|", ">"),
        *("&a ", "*a", "<<: ", "<<: *a\n", "'", '"', "\\", "\\x", '"\\ud800"', '"\\U7fffffff"'),
        *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!null ", "!x "),
        *("0x_", "0b_", "0_", "1:99", "1e999", ".inf", ".nan", "~", "=", "2024-13-32", "9" * 5000),
        *("---\n", "...\n", "%YAML 1.1\n", "%YAML " + "9" * 5000, "\ufeff", "\x00", "\x85", "é"),
        *("base_model", "source", "data", "train", "lora", "r", "lora.r", "seed", "true", "null"),
    ]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))
HARD = st.sampled_from(
    [
        *("\x00", "\ud800", "x" * 300, "x" * 300_000, "x/" * 3000, "~nobody/x", "~\x00", "/proc/x"),
        *("a/b@" + "x" * 300, "package:", "9" * 5000, "1e999", "0x_", True, 10**30, 10**400),
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.just("a.b"), inner, max_size=3)
    ),
    max_leaves=5,
)


def paths(config: type[Section]) -> list[tuple[str, ...]]:
    """Return the path of every setting, sections included."""
    inner = [
        (name, field)
        for name in sections(config)
        for field in (section_of(config, name) or config).model_fields
        if name != "adapters"
    ]
    return [*((name,) for name in config.model_fields), *inner]


@contextlib.contextmanager
def refused_or_read(*places: str) -> Any:  # noqa: ANN401 - a context manager
    """Check that nothing but a UserError comes, which is short and names the places."""
    try:
        yield
    except UserError as mistake:
        message = str(mistake)
        assert len(message) <= LONGEST_MESSAGE, message
        is_by_line = "not valid YAML: line " in message
        for place in places[:1] if is_by_line else places:
            assert place in message


@given(KINDS, TEXTS)
@DRAWN
def test_any_text_is_read_or_refused(tmp_path: Path, config: type[Section], text: str) -> None:
    """A file of any text is a configuration or a mistake, which names the file."""
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with refused_or_read(str(file)):
        read_settings(config, file)


@given(KINDS, st.binary(max_size=60))
@DRAWN
def test_any_bytes_are_read_or_refused(
    tmp_path: Path, config: type[Section], content: bytes
) -> None:
    """Bytes in any encoding, or in none, are a configuration or one message that names the file."""
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with refused_or_read(str(file)):
        read_settings(config, file)


@given(KINDS, st.one_of(HARD, VALUES), st.data())
@DRAWN
def test_any_value_is_read_or_refused_by_its_key(
    tmp_path: Path, config: type[Section], value: object, data: st.DataObject
) -> None:
    """A setting of any value is accepted, or the message names file and setting."""
    *section, key = data.draw(st.sampled_from(paths(config)))
    content = json.loads(json.dumps(SMALLEST[config]))
    # A base that is named at all needs a source, of which the message would be otherwise.
    needed = {"source": "org/model"} if section == ["base_model"] else {}
    inner = content.setdefault(section[0], needed) if section else content
    inner[key] = value
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(content))
    with refused_or_read(str(file), *section, key):
        read_settings(config, file)


@given(KINDS, TEXTS, st.data())
@DRAWN
def test_any_override_is_read_or_refused_by_its_key(
    tmp_path: Path, config: type[Section], text: str, data: st.DataObject
) -> None:
    """The same holds for the value of an override, which is YAML of its own."""
    key = ".".join(data.draw(st.sampled_from(paths(config))))
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(SMALLEST[config]))
    with refused_or_read(key):
        read_settings(config, file, [f"{key}={text}"])


@given(KINDS, TEXTS)
@DRAWN
def test_any_word_is_an_override_or_refused(
    tmp_path: Path, config: type[Section], word: str
) -> None:
    """A text that is not an override is refused as such."""
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(SMALLEST[config]))
    with refused_or_read("--set"):
        read_settings(config, file, [word])


@pytest.mark.parametrize("config", SMALLEST)
def test_the_smallest_configurations_are_read(tmp_path: Path, config: type[Section]) -> None:
    """The drawn values are the only mistakes of the configurations above."""
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(SMALLEST[config]))
    assert isinstance(read_settings(config, file), config)
