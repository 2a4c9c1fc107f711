"""What a section of variants may say, and what is told of one that can't work."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import TrainVariantsConfig
from tasks.config.reading import read_settings, with_settings
from tasks.errors import UserError

_ALONE: dict[str, Any] = {"base_model": {"source": "org/base"}, "data": {"train": "rows.jsonl"}}


def _read(folder: Path, variants: dict[str, Any], **sections: Any) -> TrainVariantsConfig:  # noqa: ANN401
    file = folder / "set.yaml"
    file.write_text(yaml.safe_dump({**_ALONE, **sections, "variants": variants}))
    return read_settings(TrainVariantsConfig, file)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({}, "none of them; give one of list, grid, search and split_by"),
        ({"grid": {"lora.r": [4]}, "split_by": "tenant"}, "variants has grid and split_by"),
        ({"grid": {"lora.rank": [4]}}, "lora.rank is not a setting; did you mean lora.r?"),
        ({"grid": {"lora": [4]}}, "lora is a section; name one of its settings"),
        ({"grid": {"output.folder": ["a"]}}, "output.folder is the same for all variants"),
        ({"grid": {"lora.r": []}}, "variants.grid.lora.r is .*at least 1 item"),
        ({"list": [{"name": "a/b"}]}, "variants.list.0.name is 'a/b'; it must match pattern"),
        ({"list": [{"name": "nul"}]}, "nul can't be the name of a folder on Windows"),
        ({"list": [{"name": "a"}, {"name": "A"}]}, "two variants are named 'A'"),
        ({"list": [{"name": "a", "settings": {"x.y": 1}}]}, "the variant a: x is not a setting"),
        ({"search": {"ranges": {"lora.q": [1]}}}, "variants.search.ranges: lora.q is not a sett"),
        ({"search": {"ranges": {"lora.r": {"low": 8, "high": 4}}}}, "low is 8 and high 4"),
        ({"search": {"ranges": {"lora.r": {"low": 8}}}}, "lora.r.high is missing"),
        (
            {"search": {"ranges": {"lora.r": {"low": 0, "high": 4, "log": True}}}},
            "low is 0, which has no logarithm",
        ),
        ({"split_by": "tenant", "metric": "accuracy"}, "accuracy is for sequence-classification"),
        (
            {"grid": {"training.preferences.beta": [0.1, 0.5]}},
            "differ in training.preferences.beta have different losses",
        ),
        ({"split_by": "tenant", "metric": "rewards/accuracies"}, "of pairs, but .* is sft"),
        ({"grid": {"lora.r": list(range(1, 102)), "seed": list(range(100))}}, "10,100 variants"),
    ],
)
def test_one_message_says_what_can_not_work(
    tmp_path: Path, variants: dict[str, Any], message: str
) -> None:
    """Each mistake in the section is told by its place, with what is possible."""
    with pytest.raises(UserError, match=message) as told:
        _read(tmp_path, variants)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("sections", "metric", "message"),
    [
        ({"data": {"train": "a.jsonl", "eval_fraction": 0}}, "eval_loss", "none are held out"),
        ({"inference": {"sample_rows": 0}}, "exact_match", "inference.sample_rows is 0"),
        ({"data": {"train": ["a.jsonl", "b.jsonl"]}}, "train_loss", "data.train is a list"),
        ({"launch": {"cluster": "ray"}}, "train_loss", "launch.cluster is ray.*of its own"),
        ({"launch": {"num_processes": 2}}, "train_loss", "launch.num_processes is 2.*one process"),
    ],
)
def test_a_metric_or_split_that_the_training_does_not_have(
    tmp_path: Path, sections: dict[str, Any], metric: str, message: str
) -> None:
    """What variants are compared by must be measured, and the column be in one source."""
    with pytest.raises(UserError, match=message):
        _read(tmp_path, {"split_by": "tenant", "metric": metric}, **sections)


def test_losses_of_pairs_are_compared_by_how_often_the_chosen_answer_is_preferred(
    tmp_path: Path,
) -> None:
    """With another beta the loss is another one: the lower of two says nothing."""
    grid = {"grid": {"training.preferences.beta": [0.1, 0.5]}, "metric": "rewards/accuracies"}
    for objective in ("dpo", "orpo"):
        found = _read(tmp_path, grid, training={"objective": objective})
        assert found.variants.metric == "rewards/accuracies"
        assert not found.variants.metric.is_loss
    with pytest.raises(UserError, match=r"is of pairs, but training\.objective is kto"):
        _read(tmp_path, grid, training={"objective": "kto"})


def test_each_objective_has_its_own_defaults(tmp_path: Path) -> None:
    """What is set beside the variants is for all; what isn't, is each objective's default."""
    grid = {"grid": {"training.objective": ["dpo", "simpo"]}, "metric": "rewards/accuracies"}
    training = {"objective": "dpo", "preferences": {"beta": 0.3}}
    alone = _read(tmp_path, grid, training=training).alone
    found = with_settings(alone, {"training.objective": "simpo"}, "simpo").training
    assert found.preference_settings.beta == 0.3
    assert found.preference_settings.cpo_alpha == 1


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A file that a variant names is beside the configuration, as one outside of the section is."""
    found = _read(
        tmp_path,
        {"list": [{"name": "a", "settings": {"data.train": "other.jsonl", "lora.r": 4}}]},
    )
    assert found.variants.list
    assert found.variants.list[0].settings["data.train"] == str(tmp_path / "other.jsonl")
    grid = _read(tmp_path, {"grid": {"data.train": ["a.jsonl", "b.jsonl"]}}).variants.grid
    assert grid == {"data.train": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]}


def test_the_rest_is_a_configuration_of_its_own(tmp_path: Path) -> None:
    """Without the section it is what `train` reads, with the same sha256."""
    found = _read(tmp_path, {"split_by": "tenant"}, lora={"r": 4})
    assert found.variants.split_by
    assert found.variants.split_by.column == "tenant"
    assert found.alone.lora.r == 4
    assert found.sha256() == found.alone.sha256()


@pytest.mark.parametrize("text", ["", "variants:\n"])
def test_a_file_without_variants_is_told_what_is_missing(tmp_path: Path, text: str) -> None:
    """The section is required although each of its settings is optional."""
    file = tmp_path / "plain.yaml"
    file.write_text(yaml.safe_dump(_ALONE) + text)
    with pytest.raises(UserError, match=r"variants is missing: .*: list, grid, search, split_by"):
        read_settings(TrainVariantsConfig, file)
