"""The command line as a user meets it: exit status, stdout, stderr, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from flow_runs import sums, tiny_config

from tasks.errors import VerificationError
from tasks.records import ReportRecord
from tasks.runtime import home
from tasks.tracking import Tracker

ADAPTERFLOW = Path(sys.executable).with_name("adapterflow")


@pytest.fixture
def config_file(tiny_base: Path, tmp_path: Path) -> Path:
    """Write a configuration for a run of seconds."""
    config = tiny_config(tiny_base, sums(tmp_path / "sums.jsonl"))
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())  # JSON is YAML
    return file


ROWS = {
    "no such file": (None, "does not exist"),
    "malformed line": ('{"text": "a"}\n{"text": \n', "line 2"),
    "empty": ("", "is empty"),
    "wrong columns": ('{"question": "a"}\n', "has the columns question"),
    "no completion": ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "row 2"),
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_bad_rows_end_before_anything_starts(
    case: tuple[str | None, str],
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bad data is one line on stderr and exit status 2, and no file is made."""
    (rows, message), data = case, tmp_path / "bad.jsonl"
    if rows is not None:
        data.write_text(rows)
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    status, out, err = run_in_process(
        capsys, monkeypatch, "train", config_file, "--set", f"data.train={data}"
    )
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=8", "did you mean lora.r?"),
        ("lora.r=0", "lora.r is 0"),
        ("nonsense", "key.path=value"),
    ],
)
def test_bad_settings_are_named(
    override: str,
    message: str,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong setting is one message that names it, and exit status 2."""
    status, out, err = run_in_process(capsys, monkeypatch, "train", config_file, "--set", override)
    assert (status, out) == (2, "")
    assert message in err


def test_a_base_that_can_t_work_leaves_a_new_home_as_it_was(
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the base's files refuse is found before a server makes its database."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    status, _, err = run_in_process(
        capsys, monkeypatch, "train", config_file, "--set", "lora.target_modules=[no_such]"
    )
    assert status == 2, err
    assert "no_such" in err
    assert not (tmp_path / "home/.prefect").exists()


def test_help_imports_no_heavy_library() -> None:
    """The command line with all its commands is imported without what takes long to import."""
    code = "import sys, flows.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "peft", "datasets", "prefect", "mlflow", "pydantic"}
    assert not heavy & set(done.stdout.split())


def test_init_writes_a_configuration_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` writes a commented file for the user's data, and never over another one."""
    from tasks.config.reading import read_config

    data, file = sums(tmp_path / "sums.jsonl"), tmp_path / "new.yaml"
    arguments = ("init", data, "--base-model", "org/model", "--output", file)
    assert run_in_process(capsys, monkeypatch, *arguments)[0] == 0
    config = read_config(file)
    assert (config.data.train, config.base_model.source) == (str(data), "org/model")
    assert "# " in file.read_text()
    assert run_in_process(capsys, monkeypatch, *arguments)[0] == 2


def test_init_shows_the_first_row(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first row is shown as the model sees it if there is a base; else the reason is given."""
    data = sums(tmp_path / "sums.jsonl")
    for base, expected in (
        (tiny_base, "\u27e60<|im_end|>\u27e7"),
        ("org/model", "can't be shown yet"),
    ):
        file = tmp_path / f"{Path(base).name}.yaml"
        arguments = ("init", data, "--base-model", base, "--output", file)
        status, out, err = run_in_process(capsys, monkeypatch, *arguments)
        assert status == 0
        assert expected in out + err


def test_a_home_that_can_be_no_folder_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file where a folder should be is a user's mistake, for whichever command."""
    (tmp_path / "file").touch()
    for place in ("file", "file/home"):
        monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / place))
        status, _, problem = run_in_process(capsys, monkeypatch, "down")
        assert status == 2
        assert f"ADAPTERFLOW_HOME is {tmp_path / place}" in problem
        assert f"{tmp_path / 'file'} is a file" in problem


def test_two_servers_need_two_ports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number for both is refused before anything starts."""
    ports = ("--prefect-port=4300", "--mlflow-port=4300")
    status, _, problem = run_in_process(capsys, monkeypatch, "up", *ports)
    assert status == 2
    assert "both 4300" in problem


def test_ship_says_that_nothing_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing to ship the status is 0; a folder that is not there is a mistake."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    status, out, _ = run_in_process(capsys, monkeypatch, "ship", tmp_path)
    assert (status, out) == (0, "nothing is waiting\n")
    status, out, err = run_in_process(capsys, monkeypatch, "ship", tmp_path / "gone")
    assert (status, out) == (2, "")
    assert "no such folder" in err


def test_json_is_alone_on_stdout(
    prefect_server: None,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--json` prints the report as one JSON object on stdout, and nothing else there."""
    status, out, err = run_in_process(capsys, monkeypatch, "train", config_file, "--json")
    assert status == 0, err
    report = ReportRecord.model_validate_json(out)
    assert report.saved.is_intact()


def test_the_summary_says_where_everything_is(
    prefect_server: None,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finished run ends with the adapter's folder, the MLflow run and how to open both UIs."""
    status, out, err = run_in_process(capsys, monkeypatch, "train", config_file)
    assert status == 0, err
    assert str(home.outputs()) in out
    assert "mlflow ui --backend-store-uri sqlite:////" in out
    assert "Prefect UI" in out


def test_a_failed_run_ends_with_the_command_that_resumes_it(
    prefect_server: None,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failure the status is 1, and the last line on stderr works as it stands."""
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_metrics", _unproven)
        status, _, err = run_in_process(capsys, patch, "train", config_file)
    assert status == 1
    assert "the run failed: unproven" in err
    command = err.splitlines()[-1].removeprefix("to resume: ").split()[1:]
    assert run_in_process(capsys, monkeypatch, *command)[0] == 0


def _unproven(*_: object) -> None:
    raise VerificationError("unproven")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGKILL, 1)],
)
def test_a_run_survives_what_kills_it(
    number: signal.Signals, processes: int, config_file: Path, tmp_path: Path
) -> None:
    """Killed in mid-training, a run goes on from its checkpoint to the same weights.

    What can be handled loses no step.
    """
    environment = {**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")}
    settings = (
        "training.num_train_epochs=60",
        "training.eval_steps=10",
        f"launch.num_processes={processes}",
    )
    command = [ADAPTERFLOW, "train", config_file, *(f"--set={s}" for s in settings), "--json"]
    whole = _report(command, environment)
    words = [str(part) for part in command]
    killed = subprocess.Popen(  # Ctrl-C must reach it, which a shell's background job ignores
        words,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        start_new_session=True,
    )
    try:
        _wait_for_checkpoint(tmp_path / "home", besides=whole.run.folder)
        killed.send_signal(number)
        killed.wait(timeout=120)
    finally:
        with suppress(ProcessLookupError):  # if it did not end
            os.killpg(killed.pid, signal.SIGTERM)
    _, err = killed.communicate()
    assert killed.returncode == (-9 if number is signal.SIGKILL else 1)
    if number is not signal.SIGKILL:
        assert err.splitlines()[-1].startswith("to resume: ")
        assert _last_checkpoint(tmp_path / "home", whole) == _last_step(tmp_path / "home", whole)
    flow_run_id = _newest_flow_run(environment)
    resumed = _report([ADAPTERFLOW, "resume", flow_run_id, "--json"], environment)
    assert resumed.trained.weights.sha256 == whole.trained.weights.sha256
    assert resumed.trained.loss_curve == whole.trained.loss_curve


def _last_checkpoint(home: Path, besides: ReportRecord) -> int:
    found = home.glob("outputs/*/checkpoints/checkpoint-*/complete.json")
    others = (path.parent for path in found if not path.is_relative_to(besides.run.folder))
    return max(int(path.name.removeprefix("checkpoint-")) for path in others)


def _last_step(home: Path, besides: ReportRecord) -> int:
    """Return the last step whose loss was logged."""
    [journal] = set(home.glob("outputs/*/tracking/journal.jsonl")) - {
        besides.run.folder / "tracking" / "journal.jsonl"
    }
    operations = map(json.loads, journal.read_text().splitlines())
    points = [point for one in operations for point in one["with"].get("points", ())]
    return max(int(step) for name, _, _, step in points if name == "train/loss")


def _report(command: list[object], environment: dict[str, str]) -> ReportRecord:
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ReportRecord.model_validate(json.loads(done.stdout))


def _wait_for_checkpoint(folder: Path, besides: Path) -> None:
    for _ in range(3600):
        found = folder.glob("outputs/*/checkpoints/checkpoint-*/trainer_state.json")
        if any(not path.is_relative_to(besides) for path in found):
            return
        time.sleep(0.05)
    pytest.fail("no checkpoint was written within three minutes")


def _newest_flow_run(environment: dict[str, str]) -> str:
    import sqlite3

    database = Path(environment["ADAPTERFLOW_HOME"]) / ".prefect" / "prefect.db"
    with sqlite3.connect(database) as connection:
        row = connection.execute("select id from flow_run order by created desc limit 1").fetchone()
    return str(row[0])
