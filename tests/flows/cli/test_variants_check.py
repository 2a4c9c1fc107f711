"""`check` tells of a set of variants before anything of it is made."""

import json
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from flow_runs import sums
from variant_sets import set_config, tenants, written


def test_a_set_is_forecast(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How many variants there are, of how many rows, and what one of them is; nothing is left."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    data = tenants(tmp_path / "rows.jsonl", 3, 12)
    file = written(set_config(tiny_base, data, {"split_by": "tenant"}), tmp_path / "set.yaml")
    status, out, _ = run_in_process(capsys, monkeypatch, "check", file, "--no-probe", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["plan"]["num_rows"] == {"tenant-0": 12, "tenant-1": 12, "tenant-2": 12}
    assert found["first"]["data"]["train"]["num_rows"] == 9
    assert found["disk_bytes"] > 3 * 5 * 4 * found["first"]["num_trainable_parameters"]
    assert not (tmp_path / "home/outputs").exists()


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
