"""Training rows may come from several sources: a list that fits together, or one message."""

from pathlib import Path

import pytest

from flows.server.deployment_parameters import read_parameters
from tasks.config import TrainAdapterConfig
from tasks.config.reading import read_config
from tasks.durability.run_names import full_name
from tasks.errors import UserError

BASE = "base_model: {source: org/base}\n"


def written(folder: Path, train: str, more: str = "") -> Path:
    """Write a configuration with these training rows."""
    path = folder / "run.yaml"
    path.write_text(f"{BASE}data:\n  train: {train}\n{more}", encoding="utf-8")
    return path


def test_a_text_is_one_source(tmp_path: Path) -> None:
    """A plain text keeps its meaning, and its split and revision with it."""
    more = "  train_split: validation\n  revision: v2\n"
    (only,) = read_config(written(tmp_path, "org/rows", more)).data.sources
    assert (only.path, only.split, only.revision) == ("org/rows", "validation", "v2")
    assert (only.short_name, only.weight, only.max_rows) == ("rows", None, None)


def test_a_list_mixes_names_and_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to who names them, whether they stand alone or in a mapping."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(tmp_path)
    file = written(there, "[a.jsonl, {path: b.csv, name: tickets}, org/rows, {path: org/more}]")
    found = read_config(file).data.sources
    assert [one.path for one in found] == [
        str(there / "a.jsonl"),
        str(there / "b.csv"),
        "org/rows",
        "org/more",
    ]
    assert [one.short_name for one in found] == ["a", "tickets", "rows", "more"]
    here = read_config(file, ["data.train=[c.jsonl]"]).data.sources
    assert [one.path for one in here] == [str(tmp_path / "c.jsonl")]


def test_a_source_without_weight_in_the_mix_is_left_out(tmp_path: Path) -> None:
    """A weight of 0 switches a source off."""
    train = "[{path: org/a, weight: 2}, {path: org/b, weight: 0}]"
    assert [s.path for s in read_config(written(tmp_path, train)).data.sources] == ["org/a"]


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        ("[]", "", r"data\.train: the list is empty"),
        ("[org/a, a/a]", "", "2 sources are named a, but .* a name of its own"),
        ("[{path: org/a, weight: -1}]", "", r"data\.train\.0\.weight is -1"),
        ("[{path: org/a, weight: .nan}]", "", r"data\.train\.0\.weight is nan"),
        ("[{path: org/a, weight: 0}]", "", "all weights are 0"),
        ("[{path: org/a, weight: 1}, org/b]", "", "some sources have a weight, but b has none"),
        ("[{path: org/a, max_rows: 0}]", "", r"data\.train\.0\.max_rows is 0"),
        ("[{path: org/a, wieght: 1}]", "", r"wieght is not a setting; did you mean"),
        ("[{name: a}]", "", r"data\.train\.0\.path is missing"),
        ("[{path: org/a, name: a b}]", "", r"data\.train\.0\.name is 'a b'"),
        ("[3]", "", r"data\.train\.0 is 3; it must be a mapping of path, name"),
        ("{path: org/a}", "", r"data\.train is .*; it must be a valid string or .*list"),
        (
            "[org/a]",
            "  eval_split: test\n",
            "eval_split is another split of train, which is a list",
        ),
        ("[org/a]", "  train_split: dev\n", "write train_split as split of a source"),
        ("[org/a]", "  revision: v2\n", "write revision into the source that has it"),
    ],
)
def test_a_malformed_list_is_one_message(
    tmp_path: Path, train: str, more: str, message: str
) -> None:
    """The message gives the path in the configuration, and what is possible."""
    with pytest.raises(UserError, match=message) as caught:
        read_config(written(tmp_path, train, more))
    assert "\n" not in str(caught.value)


def test_a_deployment_waits_for_each_file(tmp_path: Path) -> None:
    """An event about any of the sources' files starts the deployment."""
    file = written(tmp_path, "[a.jsonl, {path: rows}]", "  eval: c.jsonl\n")
    (tmp_path / "rows").mkdir()
    paths = read_parameters("train-adapter", str(file))["data_paths"]
    for name in ("a.jsonl", "rows", "rows/*", "c.jsonl"):
        assert str(tmp_path / name) in paths


def test_a_deployments_parameters_are_a_configuration_again(tmp_path: Path) -> None:
    """The form's values, and those of a record, are read as they were written."""
    file = written(tmp_path, "[{path: org/a, weight: 2}, {path: org/b, weight: 1, max_rows: 9}]")
    given = read_parameters("train-adapter", str(file))["config"]
    assert TrainAdapterConfig.model_validate(given) == read_config(file)


def test_a_run_is_named_by_its_sources(tmp_path: Path) -> None:
    """The names of the sources stand where the file's name stands."""
    config = read_config(written(tmp_path, "[tickets.jsonl, {path: org/chat}]"))
    assert full_name(config, "calm-fox") == "base-tickets+chat-calm-fox"
