"""`check` tells of a set of variants before anything of it is made."""

import json
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from flow_runs import sums
from variant_sets import set_config, written

from benchmarks.harness.variant_rows import tenant_rows
from flows.cli.check import forecast_of
from flows.cli.early_checks import check_set
from flows.cli.variants_check import _of_all
from tasks.engine.forecast import Probe


def test_a_set_is_forecast(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How many variants there are, of how many rows, and what one of them is; nothing is left."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    data = tenant_rows(tmp_path / "rows.jsonl", 3, 12)
    file = written(set_config(tiny_base, data, {"split_by": "tenant"}), tmp_path / "set.yaml")
    status, out, _ = run_in_process(capsys, monkeypatch, "check", file, "--no-probe", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["plan"]["num_rows"] == {"tenant-0": 12, "tenant-1": 12, "tenant-2": 12}
    assert found["first"]["data"]["train"]["num_rows"] == 9
    assert found["disk_bytes"] > 3 * 5 * 4 * found["first"]["num_trainable_parameters"]
    assert not (tmp_path / "home/outputs").exists()


def test_steps_and_epochs_are_forecast_in_the_same_unit(tiny_base: Path, tmp_path: Path) -> None:
    """A variant of as many steps as another's epochs have takes about as long."""
    data = sums(tmp_path / "sums.jsonl")
    alone = forecast_of(set_config(tiny_base, data, {"grid": {"seed": [0]}}), with_probe=False)
    listed = [
        {"name": "epochs"},
        {"name": "steps", "settings": {"training.max_steps": alone.num_steps, "seed": 1}},
    ]
    config = set_config(tiny_base, data, {"list": listed})
    probe = Probe(
        batching="",
        base_bytes=0,
        peak_memory_bytes=0,
        peak_gpu_bytes=0,
        seconds_per_step=1.0,
        seconds_per_evaluation=0.0,
    )
    first = alone.model_copy(update={"probe": probe})
    found = _of_all(config, check_set(config), first).seconds_training
    assert found == pytest.approx(2 * alone.num_steps, rel=0.2)


@pytest.mark.parametrize(
    "case",
    [
        ("check", {"lora.target_modules": ["q_prj"]}, "q_prj"),
        ("variants", {"lora.target_modules": ["q_prj"]}, "q_prj"),
        ("check", {"training.optim": "lora_fa", "training.loraplus_lr_ratio": 4}, "set one of"),
        ("check", {"data.where": {"prompt": "none"}}, "there is no row of"),
        ("check", {"data.train": "/nowhere/rows.jsonl"}, "/nowhere/rows.jsonl does not exist"),
    ],
)
def test_settings_that_can_not_work_are_told_with_their_variant(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, dict[str, object], str],
) -> None:
    """Settings of any variant that can't work are told before anything is made."""
    command, wrong, words = case
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    listed = [
        {"name": "small", "settings": {"lora.r": 4}},
        {"name": "wrong", "settings": wrong},
    ]
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), {"list": listed})
    file = written(config, tmp_path / "set.yaml")
    status, out, told = run_in_process(capsys, monkeypatch, command, file)
    assert (status, out) == (2, "")
    assert "error: the variant wrong: " in told
    assert words in told
    assert not (tmp_path / "home/outputs").exists()


def test_rows_that_a_search_would_not_find_are_told_before_it(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what a search may try, the settings of rows and base are checked as a variant's are."""
    ranges = {"data.where": [{}, {"prompt": "none"}]}
    data = sums(tmp_path / "sums.jsonl")
    file = written(set_config(tiny_base, data, {"search": {"ranges": ranges}}), tmp_path / "s.yaml")
    status, _, told = run_in_process(capsys, monkeypatch, "check", file)
    assert status == 2
    assert "error: variants.search.ranges.data.where: " in told
    assert "there is no row of" in told


def test_train_names_the_command_for_a_set(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file with variants is not one of `train`, which says so."""
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), {"grid": {"lora.r": [4, 8]}})
    file = written(config, tmp_path / "set.yaml")
    status, _, told = run_in_process(capsys, monkeypatch, "train", file)
    assert status == 2
    assert f"train all of them with: adapterflow variants {file}" in told
