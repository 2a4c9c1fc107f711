"""What a set of variants consists of."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import TrainVariantsConfig
from tasks.errors import UserError
from tasks.tracking import VARIANT_TAG
from tasks.variants.expansion import identity, planned, safe_name, variant_config


def _config(variants: dict[str, Any], **sections: Any) -> TrainVariantsConfig:  # noqa: ANN401
    alone = {"base_model": {"source": "org/base"}, "data": {"train": "rows.jsonl"}}
    return TrainVariantsConfig.model_validate({**alone, **sections, "variants": variants})


def _rows(folder: Path, values: Sequence[object], name: str = "rows.jsonl") -> dict[str, Any]:
    file = folder / name
    rows = (
        {"prompt": str(number), "completion": "x"} | ({} if value is None else {"tenant": value})
        for number, value in enumerate(values)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": str(file)}


def test_a_grid_is_every_combination_once() -> None:
    """The variants are the product of the values, with distinct names that say how they differ."""
    grid: dict[str, list[float]] = {
        "lora.r": [4, 8],
        "training.learning_rate": [1e-4, 1e-3],
        "lora.use_dora": [True],
    }
    found = planned(_config({"grid": grid})).variants
    assert [tuple(one.settings.values()) for one in found] == list(product(*grid.values()))
    assert len({one.name for one in found}) == 4
    assert found[1].name == "r-4-learning_rate-0.001-use_dora-true"


def test_a_grid_gives_each_variant_a_name_of_its_own() -> None:
    """Values that are named alike, or differ in case only, are numbered past names that exist."""
    files = ["a/rows.jsonl", "b/rows.jsonl", "rows.jsonl-2", "c/Rows.jsonl"]
    found = planned(_config({"grid": {"data.train": files}})).variants
    assert len({one.name.casefold() for one in found}) == len(files)
    assert found[0].name == "train-rows.jsonl"


def test_a_variant_differs_in_its_settings_alone() -> None:
    """All other settings are those of the configuration around it."""
    config = _config({"list": [{"name": "a", "settings": {"lora.r": 4, "seed": 3}}]}, seed=1)
    (variant,) = planned(config).variants
    found = variant_config(config.alone, variant).model_dump()
    expected = config.alone.model_dump()
    expected["lora"]["r"], expected["seed"] = 4, 3
    assert found == expected


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"grid": {"lora.r": [4, 0]}}, "the variant r-0: lora.r is 0"),
        ({"grid": {"lora.r": [16, 16.0]}}, "are the same configuration"),
        (
            {"list": [{"name": "a"}, {"name": "b", "settings": {"lora.r": 16}}]},
            "the variants a and b are the same configuration",
        ),
        ({"search": {"ranges": {"lora.r": {"low": 0, "high": 8}}}}, "ranges.lora.r: lora.r is 0"),
        ({"search": {"ranges": {"lora.bias": ["none", "some"]}}}, "lora.bias is 'some'"),
        ({"search": {"ranges": {"lora.r": {"low": 4.0, "high": 8.0}}}}, "valid integer"),
        ({"search": {"ranges": {"lora.r": {"low": 4, "high": 7.0}}}}, "valid integer"),
        ({"grid": {"output.push_to_hub": ["org/x"], "seed": [1, 2]}}, "both be pushed to org/x"),
        ({"grid": {"launch.num_processes": [1, 2]}}, "the variant num_processes-2: launch.num_pro"),
        (
            {"search": {"ranges": {"launch.num_processes": [1, 2]}}},
            "variants.search.ranges.launch.num_processes: launch.num_processes is 2",
        ),
        (
            {"grid": {"data.eval_fraction": [0.5, 0]}},
            "the variant eval_fraction-0: variants.metric eval_loss is of held-out rows",
        ),
    ],
)
def test_variants_that_can_not_be(variants: dict[str, Any], message: str) -> None:
    """Settings are checked for each variant, and two that are the same are refused."""
    with pytest.raises(UserError, match=message):
        planned(_config(variants))


def test_how_a_run_is_recorded_makes_no_other_variant() -> None:
    """Two configurations are the same if they would train the same adapter."""
    config = _config({"split_by": "tenant"})
    tracking = config.tracking.model_copy(update={"tags": {VARIANT_TAG: "a"}})
    assert identity(config.alone) == identity(
        config.alone.model_copy(update={"tracking": tracking})
    )


def test_each_value_of_a_column_is_a_variant(tmp_path: Path) -> None:
    """A variant reads the rows of one value, and is named after it; numbers are values, too."""
    data = _rows(tmp_path, ["acme inc."] * 12 + [7] * 11)
    found = planned(_config({"split_by": "tenant"}, data=data))
    assert found.num_rows == {"acme-inc": 12, "7": 11}
    assert [one.settings for one in found.variants] == [
        {"data.where": {"tenant": "acme inc."}},
        {"data.where": {"tenant": "7"}},
    ]


def test_a_split_keeps_to_the_rows_that_it_is_given(tmp_path: Path) -> None:
    """`data.where` beside a split is for all of its variants."""
    file = tmp_path / "rows.jsonl"
    rows = ({"t": "ab"[n % 2], "lang": "de" if n < 40 else "fr"} for n in range(80))
    file.write_text("".join(json.dumps({**row, "prompt": "p"}) + "\n" for row in rows))
    data = {"train": str(file), "where": {"lang": "de"}}
    found = planned(_config({"split_by": "t"}, data=data))
    assert found.num_rows == {"a": 20, "b": 20}
    assert found.variants[0].settings == {"data.where": {"lang": "de", "t": "a"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 20, "all rows of .* have the same tenant, 'a'"),
        (["a"] * 20 + ["b"] * 3 + ["c"] * 2, "2 of 3 values of tenant .* fewer than 10 rows: c"),
        (["a"] * 20 + ["b"] * 20 + [None], "1 rows of .* have no tenant, the first of them row 41"),
        (["a b"] * 20 + ["a.b"] * 20, "'a b' and 'a.b' of tenant would both be named a-b"),
        ([None] * 20, "'tenant', which is no column of any row"),
        ([["a"]] * 20, "'tenant', which has no text, number or true/false in any row"),
    ],
)
def test_a_column_that_splits_badly(tmp_path: Path, values: list[object], message: str) -> None:
    """The message names the values, their rows and what to do."""
    with pytest.raises(UserError, match=message):
        planned(_config({"split_by": "tenant"}, data=_rows(tmp_path, values)))


def test_few_rows_can_be_left_out(tmp_path: Path) -> None:
    """With `drop` they are counted, and the others are trained."""
    data = _rows(tmp_path, ["a"] * 20 + ["b"] * 3 + ["c"] * 10 + [None] * 2)
    found = planned(_config({"split_by": {"column": "tenant", "on_too_few": "drop"}}, data=data))
    assert [one.name for one in found.variants] == ["a", "c"]
    assert found.left_out == {"b": 3, "": 2}


def test_each_value_needs_held_out_rows(tmp_path: Path) -> None:
    """Where held-out rows are a file of their own, a value without any is named."""
    data = _rows(tmp_path, ["a"] * 20 + ["b"] * 20)
    data["eval"] = _rows(tmp_path, ["a"] * 4, "eval.jsonl")["train"]
    with pytest.raises(UserError, match=r"1 of 2 values of tenant have no held-out rows in .*: b"):
        planned(_config({"split_by": "tenant"}, data=data))


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1))
def test_any_value_has_a_name(value: str) -> None:
    """Whatever the value, its name is one that a folder and an adapter can have."""
    name = safe_name(value)
    assert 0 < len(name) <= 60
    assert name.isascii()
    assert all(one.isalnum() or one in "-_" for one in name)
