"""What a trained adapter is put to, from the command line, as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from tiny_models import tiny_adapter

from tasks.records import CombinedRecord, GgufRecord, MergedRecord, PredictionRecord

ADAPTERFLOW = Path(sys.executable).with_name("adapterflow")


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter."""
    return tiny_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Write six questions."""
    file = tmp_path / "rows.jsonl"
    prompts = ({"prompt": f"What is {number} plus {number}?"} for number in range(6))
    file.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return file


MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "no output": (["{adapter}", "{rows}"], "give INPUT and OUTPUT"),
    "other kind": (["{adapter}", "{rows}", "out.csv"], "both must have the same suffix"),
    "no input": (["{adapter}", "gone.jsonl", "out.jsonl"], "gone.jsonl does not exist"),
    "no folder": (["{adapter}", "{rows}", "gone/out.jsonl"], "does not exist"),
    "no setting": (["{adapter}", "{rows}", "out.jsonl", "--set=batchsize=1"], "batch_size?"),
    "no configuration": (["gone.yaml"], "gone.yaml does not exist"),
    "no number": (["{adapter}", "{rows}", "out.jsonl", "--set=chunk_rows=0"], "chunk_rows is 0"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_before_anything_starts(  # noqa: PLR0913 - fixtures
    case: tuple[Sequence[str], str],
    adapter: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What can't work is one line on stderr and exit status 2, and no file is made."""
    arguments, message = case
    monkeypatch.chdir(tmp_path)
    given = [one.format(adapter=adapter, rows=rows) for one in arguments]
    status, out, err = run_in_process(capsys, monkeypatch, "predict", *given)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_predict_answers_a_file(  # noqa: PLR0913 - fixtures
    prefect_server: None,
    tiny_base: Path,
    adapter: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters from a configuration file answer its rows; `--json` tells of it, and no more."""
    settings = {
        "adapters": [{"source": str(adapter), "name": "one"}],
        "base_model": {"source": str(tiny_base)},
        "input": "rows.jsonl",
        "output": "answers.jsonl",
    }
    file = rows.with_name("predict.yaml")
    file.write_text(json.dumps(settings))  # JSON is YAML
    status, out, err = run_in_process(
        capsys, monkeypatch, "predict", file, "--set", "max_new_tokens=4", "--json"
    )
    assert status == 0, err
    record = PredictionRecord.model_validate_json(out)
    assert record.output.path == rows.with_name("answers.jsonl")
    assert record.is_intact()
    assert record.num_answered == 6


def test_export_writes_an_adapter_alone_or_merged(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`export` copies the adapter; with `--merged` and rows it tells what the merge came to."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "What is 1 plus 1?", "completion": "2"}) + "\n")
    alone, merged = tmp_path / "alone", tmp_path / "merged"
    status, out, err = run_in_process(capsys, monkeypatch, "export", adapter, alone, "--json")
    assert (status, json.loads(out)) == (0, {"folder": str(alone)}), err
    assert {path.name for path in alone.iterdir()} >= {"adapter_config.json"}

    options = ("--merged", "--dtype=float32", f"--rows={rows}", "--max-new-tokens=4", "--json")
    status, out, err = run_in_process(capsys, monkeypatch, "export", alone, merged, *options)
    assert status == 0, err
    record = MergedRecord.model_validate_json(out)
    assert (record.folder, record.score) == (merged, 0.0)
    assert (merged / "model.safetensors").is_file()
    assert run_in_process(capsys, monkeypatch, "export", adapter, merged, "--merged")[0] == 2


def test_export_writes_a_gguf_file(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that ends in .gguf is a file for llama.cpp; a merged model is no such file."""
    file = tmp_path / "one.gguf"
    status, out, err = run_in_process(capsys, monkeypatch, "export", adapter, file, "--merged")
    assert (status, out, file.exists()) == (2, "", False)
    assert "a merged model is a folder" in err
    status, out, err = run_in_process(capsys, monkeypatch, "export", adapter, file, "--json")
    assert status == 0, err
    assert GgufRecord.model_validate_json(out).file.path == file
    assert file.read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_a_killed_prediction_goes_on(
    tiny_base: Path, adapter: Path, rows: Path, tmp_path: Path
) -> None:
    """After SIGKILL the same command goes on behind the whole chunks, to the same answers."""
    environment = {**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")}

    def command(name: str) -> list[str]:
        settings = ("chunk_rows=1", "max_new_tokens=900")
        files = [str(adapter), str(rows), str(tmp_path / name), f"--base-model={tiny_base}"]
        return [str(ADAPTERFLOW), "predict", *files, *(f"--set={one}" for one in settings)]

    subprocess.run(command("whole.jsonl"), env=environment, check=True)
    killed = subprocess.Popen(command("killed.jsonl"), env=environment, start_new_session=True)
    partial = tmp_path / ".killed.jsonl.partial"
    for _ in range(1200):
        if len(list(partial.glob("chunk-*.jsonl"))) == 2:
            break
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    with suppress(ProcessLookupError):  # it leaves its embedded server behind
        os.killpg(killed.pid, signal.SIGTERM)
    assert not (tmp_path / "killed.jsonl").exists()
    first = (partial / "chunk-000000000.jsonl").stat()

    done = subprocess.run(
        command("killed.jsonl"), env=environment, check=True, capture_output=True, text=True
    )
    assert "by an earlier attempt" in done.stderr
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()
    assert first.st_size


def test_combine_makes_one_adapter_of_two(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights stand behind `=`; a method that is none is a mistake that lists those that are."""
    command = ("combine", tmp_path / "both", f"{adapter}=1", f"{adapter}=0.5")
    status, out, err = run_in_process(capsys, monkeypatch, *command, "--method=magic")
    assert (status, out) == (2, "")
    assert "possible: cat, svd, ties, dare_ties" in err
    status, _, err = run_in_process(capsys, monkeypatch, *command, "--rank=4")
    assert (status, "--rank is for --method svd" in err) == (2, True)
    status, out, err = run_in_process(capsys, monkeypatch, *command, "--json")
    assert status == 0, err
    record = CombinedRecord.model_validate_json(out)
    assert list(record.weights.values()) == [1.5]
    assert (record.folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "case",
    [
        ("{adapter}", "is not NAME=ADAPTER"),
        ("a.b={adapter}", "adapter name 'a.b'"),
        ("one=", "is not NAME=ADAPTER"),
    ],
)
def test_a_bundle_s_adapters_have_names(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, str],
) -> None:
    """An argument that is not NAME=ADAPTER is refused before anything is loaded."""
    command = ("bundle", tmp_path / "bundle", case[0].format(adapter=adapter))
    status, out, err = run_in_process(capsys, monkeypatch, *command)
    assert (status, out) == (2, "")
    assert case[1] in err


@pytest.mark.parametrize("weight", ["nan", "inf", "much"])
def test_a_weight_is_a_number(
    weight: str,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is none is a mistake, and there is no adapter of it."""
    given = ["combine", tmp_path / "sum", f"{adapter}={weight}", adapter]
    status, _, err = run_in_process(capsys, monkeypatch, *given)
    assert (status, (tmp_path / "sum").exists()) == (2, False)
    assert "must be a number" in err
