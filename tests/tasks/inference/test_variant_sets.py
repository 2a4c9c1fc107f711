"""A set of variants answers a file of rows, each by the adapter of its value."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from batch_predictions import Predicting, jsonl, read
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings, PredictBatchConfig, Score
from tasks.errors import UserError
from tasks.inference.variant_sets import with_variants
from tasks.records import VARIANTS_FILE, RunRecord, VariantResult, VariantsRecord

_VALUES = {"train": "train", "b-c": "b c", "7": "7"}
"""By name; `train` is a name that PEFT refuses."""


def _result(name: str, value: str | None, adapter: str | None) -> VariantResult:
    return VariantResult(
        name=name,
        settings={},
        value=value,
        flow_run_id="",
        adapter=adapter,
        error=None if adapter else "failed",
    )


def _write(folder: Path, results: list[VariantResult], column: str | None = "tenant") -> Path:
    run = RunRecord(
        tracking_uri="", experiment="", run_name="", flow_run_id="3f2a", folder=Path("/elsewhere")
    )
    record = VariantsRecord(
        run=run,
        base="",
        column=column,
        metric=Score.EVAL_LOSS,
        best=None,
        variants=tuple(results),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for one in results:
        (folder / (one.adapter or ".")).mkdir(parents=True, exist_ok=True)
    (folder / VARIANTS_FILE).write_text(record.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of three tenants, whose adapters answer differently, and one that failed."""
    folder = tmp_path_factory.mktemp("set")
    for seed, name in enumerate(_VALUES):
        tiny_adapter(tiny_base, folder / "variants" / name / "default", seed=seed)
    results = [_result(n, value, f"variants/{n}/default") for n, value in _VALUES.items()]
    return _write(folder, [*results, _result("lost", "lost", None)])


def _config(source: Path, **changes: Any) -> PredictBatchConfig:  # noqa: ANN401
    given = {"adapters": [{"source": str(source)}], "input": "rows.jsonl"}
    return PredictBatchConfig.model_validate({**given, **changes})


def test_the_column_selects_a_row_s_adapter(tiny_base: Path, made: Path, tmp_path: Path) -> None:
    """Answers are those of the adapters by name; a value without one is told and counted."""
    rows: list[dict[str, Any]] = [
        {"tenant": value, "prompt": f"What is question {n}?"}
        for n in range(3)
        for value in ("train", "b c", 7)
    ]
    more = [{"tenant": "lost", "prompt": "x"}, {"prompt": "x"}]
    (tmp_path / "set").mkdir()
    answered = Predicting(tiny_base, {"default": made}, tmp_path / "set")(
        jsonl(tmp_path, [*rows, *more])
    )
    assert (answered.num_answered, answered.num_bad_rows) == (9, 2)
    assert "tenant is 'lost'; possible: train, b c, 7" in answered.first_errors[0]

    folders = {f"x-{name}": made / "variants" / name / "default" for name in _VALUES}
    names = {value: f"x-{name}" for name, value in _VALUES.items()}
    named = [{"prompt": row["prompt"], "adapter": names[str(row["tenant"])]} for row in rows]
    (tmp_path / "named").mkdir()
    expected = Predicting(tiny_base, folders, tmp_path / "named")(
        jsonl(tmp_path / "named", named), output=str(tmp_path / "expected.jsonl")
    )
    answers = [row["answer"] for row in read(answered.output.path)][: len(rows)]
    assert answers == [row["answer"] for row in read(expected.output.path)]
    assert len(set(answers)) > 1


def test_a_set_can_be_moved(made: Path, tmp_path: Path) -> None:
    """Adapters are found beside the manifest, wherever the set was trained."""
    moved = Path(shutil.copytree(made, tmp_path / "moved"))
    found = with_variants(_config(moved))
    assert all(Path(one.source).is_relative_to(moved) for one in found.adapters)
    assert found.adapter_column == "tenant"


def test_without_a_column_rows_name_the_variant(tmp_path: Path) -> None:
    """Variants of a list or a grid are selected by their names."""
    made = _write(tmp_path, [_result("r-0.5", None, "a"), _result("r-0-5", None, "b")], column=None)
    found = with_variants(_config(made))
    assert found.adapter_column == "adapter"
    assert [one.value for one in found.adapters] == ["r-0.5", "r-0-5"]
    assert len({one.name for one in found.adapters}) == 2


def test_another_column_can_be_configured(made: Path) -> None:
    """The rows may have the values under another name than the training's."""
    assert with_variants(_config(made, adapter_column="customer")).adapter_column == "customer"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([_result("a", "a", "../../etc")], "names ../../etc, which is outside of its folder"),
        ([_result("a", "a", None)], "none of the variants in .* has an adapter; resume the set"),
    ],
)
def test_a_set_that_can_not_answer(
    tmp_path: Path, results: list[VariantResult], message: str
) -> None:
    """A manifest from elsewhere reaches no files outside, and one without adapters is told."""
    with pytest.raises(UserError, match=message):
        with_variants(_config(_write(tmp_path / "set", results)))


def test_an_adapter_that_was_deleted_is_told(tmp_path: Path) -> None:
    """The message names the variant, its folder, and the command that trains it again."""
    made = _write(tmp_path / "set", [_result(name, name, f"variants/{name}") for name in "abc"])
    (made / "variants/b").rmdir()
    (made / "variants/c").rmdir()
    with pytest.raises(UserError) as told:
        with_variants(_config(made))
    assert str(told.value) == (
        f"the adapter of the variant b is missing: {made / 'variants/b'}, and those of 1 more; "
        "train what is missing with adapterflow resume 3f2a, and copy the set again from /elsewhere"
    )


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    """A file of another kind is told as such."""
    (tmp_path / VARIANTS_FILE).write_text(json.dumps({"run": 1}))
    with pytest.raises(UserError, match=r"variants.json can't be read as a set of variants"):
        with_variants(_config(tmp_path))


def test_a_set_stands_alone(made: Path) -> None:
    """Beside other adapters, it is unclear which column selects what."""
    both = [AdapterSettings(source=str(made)), AdapterSettings(source="org/other", name="other")]
    with pytest.raises(UserError, match="beside other adapters; give it alone"):
        with_variants(_config(made, adapters=both))
