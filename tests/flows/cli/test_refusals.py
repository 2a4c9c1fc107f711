"""Whatever is on the command line or in a variable: exit status 2, one short line, nothing left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line_runs import run_in_process

from tasks.errors import LONGEST_MESSAGE

SMALLEST = "base_model: {source: org/base}\ndata: {train: rows.jsonl}\n"

PATHS: dict[str, tuple[Callable[[Path], str], str]] = {
    "a long name": (lambda folder: f"{folder}/{'x' * 300}.jsonl", "File name too long"),
    "a long path": (lambda folder: f"{folder}{'/x' * 3000}.jsonl", "File name too long"),
    "a loop of links": (lambda folder: f"{folder}/loop.jsonl", "Too many levels of symbolic links"),
    "below a loop": (lambda folder: f"{folder}/loop.jsonl/a.jsonl", "Too many levels"),
}
COMMANDS = [
    ("train", "{path}"),
    ("check", "{path}"),
    ("retrain", "{path}"),
    ("train", "run.yaml", "--set=data.train={path}"),
    ("check", "run.yaml", "--set=data.eval={path}"),
    ("train", "run.yaml", "--set=base_model.source={path}"),
    ("train", "run.yaml", "--set=output.folder={path}"),
    ("train", "run.yaml", "--set=tracking.uri=sqlite:///{path}"),
    ("init", "{path}"),
    ("init", "rows.jsonl", "--base-model={path}"),
    ("init", "rows.jsonl", "--output={path}"),
    ("predict", "{path}", "rows.jsonl", "out.jsonl"),
    ("predict", "x/y", "{path}", "out.jsonl"),
    ("predict", "x/y", "rows.jsonl", "{path}"),
    ("predict", "x/y", "rows.jsonl", "out.jsonl", "--base-model={path}"),
    ("try", "{path}"),
    ("try", "name={path}", "x/y", "--json"),
    ("try", "x/y", "--base-model={path}"),
    ("export", "{path}", "new"),
    ("export", "x/y", "{path}"),
    ("export", "x/y", "new", "--merged", "--rows={path}"),
    ("push", "{path}", "x/y"),
    ("combine", "{path}", "x/y", "x/z"),
    ("combine", "new", "{path}", "x/z"),
    ("bundle", "{path}", "a=x/y"),
    ("bundle", "new", "a={path}"),
    ("history", "name", "--tracking-uri=sqlite:///{path}"),
    ("ship", "{path}"),
    ("moved", "{path}"),
    ("watch", "{path}"),
    ("notify", "{path}"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a configuration, rows and a link to itself."""
    (tmp_path / "run.yaml").write_text(SMALLEST)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 4)
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """Run a command that must end with status 2; return its one line, and check what is left."""
    before = sorted(Path().iterdir())
    status, out, err = run_in_process(capsys, monkeypatch, *arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert len(err) < LONGEST_MESSAGE + 100
    assert sorted(Path().iterdir()) == before
    return err


@pytest.mark.parametrize("case", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_path_that_can_be_none_is_refused(
    command: tuple[str, ...],
    case: tuple[Callable[[Path], str], str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each path of each command is looked at before anything is done there."""
    path, message = case
    words = [word.format(path=path(folder)) for word in command]
    assert message in refused(capsys, monkeypatch, *words)


HOMES: dict[str, tuple[Callable[[Path], str], str]] = {
    **PATHS,
    "in /proc": (lambda _: "/proc/adapterflow", "can't be created in /proc"),
    "below a file": (lambda folder: f"{folder}/rows.jsonl/home", "rows.jsonl is a file"),
    "of nobody": (lambda _: "~nobody-of-that-name/home", "there is no user of that name"),
}


@pytest.mark.parametrize("case", HOMES.values(), ids=HOMES.keys())
def test_an_impossible_home_is_refused(
    case: tuple[Callable[[Path], str], str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The variable is named, by every command."""
    path, message = case
    monkeypatch.setenv("ADAPTERFLOW_HOME", path(folder))
    for command in (("down",), ("train", "run.yaml")):
        error = refused(capsys, monkeypatch, *command)
        assert message in error
        assert "ADAPTERFLOW_HOME" in error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.chat_template=nowhere.jinja", "data.chat_template: "),
        ("output.folder=/proc/x", "can't be created in /proc"),
        ("output.folder=/proc", "can't be written to"),
        (f"output.folder={'/'.join(['x' * 200] * 19)}", "path is too long"),
        ("tracking.uri=sqlite:////proc/x/mlflow.db", "can't be created in /proc"),
        ("tracking.uri=htp://host", "MLflow does not support htp; possible are"),
        ("tracking.uri=http://[host", "names no server"),
        ("tracking.uri=mysql://user@host/db", "needs the Python package MySQLdb"),
        ("tracking.uri=postgresql+none://host/db", "can't be read"),
        (f"tracking.run_name={'x' * 20_000}", "must have at most 10000 characters"),
        (f"{'a.' * 3000}b=1", "the key has 3,001 parts"),
        ("base_model.source=package:/x", "names no package"),
        ("training.batch_size=1" + "0" * 30, "must be less than or equal to 1000000"),
        ("lora.r=100000000", "must be less than or equal to 16384"),
        ("lora.r=true", "lora.r is true; it must be a valid integer"),
        ("training.learning_rate=.inf", "must be a finite number"),
    ],
)
def test_a_setting_that_can_t_work_ends_before_anything_starts(
    setting: str,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A place that can't be written and a number out of bounds are found by `train` and `check`."""
    for command in ("train", "check"):
        error = refused(capsys, monkeypatch, command, "run.yaml", f"--set={setting}")
        assert message in error


@pytest.mark.parametrize("uri", ["htp://host", "http://[host", "a/folder"])
def test_predict_refuses_an_mlflow_address_that_can_t_work(
    uri: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given, so it is looked at before anything starts, whether or not it is needed."""
    words = ("predict", "x/y", "rows.jsonl", "out.jsonl", f"--set=tracking_uri={uri}")
    assert "tracking uri" in refused(capsys, monkeypatch, *words)


@pytest.mark.parametrize(
    "words",
    [
        ("up", "--mlflow-port=70000"),
        ("up", f"--mlflow-port={'9' * 5000}"),
        ("up", f"--prefect-port={'x' * 100_000}"),
        ("watch", ".", "--every=nan"),
        ("watch", ".", "--every=1e300"),
        ("combine", "new", "x/y", "x/z", "--density=nan"),
        ("combine", "new", "x/y", "x/z", "--rank=1" + "0" * 30),
        ("combine", "new", "x/y", "x/z", "--seed=-1"),
        ("combine", "new", "x/y=1e300", "x/z"),
        ("try", "x/y", "--max-new-tokens=0"),
        ("export", "x/y", "new", "--max-new-tokens=1" + "0" * 30),
        ("rollback", "name", "--reason=because", "--to=0"),
        ("nonsense" * 10_000,),
        ("train",),
        ("train", "run.yaml", f"--{'x' * 100_000}"),
        ("alert", "ftp://host"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_an_option_out_of_bounds_is_refused(
    words: tuple[str, ...],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers are finite and bounded, and a long word is not repeated in full."""
    refused(capsys, monkeypatch, *words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("promote", "name", "v1", "--reason=x"), "integer"),
        (("try", "x/y", "--max-new-tokens=many"), "integer"),
        (("up", "--mlflow-port=http"), "integer"),
        (("combine", "new", "x/y", "x/z", "--seed=x"), "integer"),
        (("init", "rows.jsonl", "--retrain", "--held-out=50%"), "number"),
    ],
)
def test_a_word_that_is_no_number_is_called_so(
    words: tuple[str, ...],
    kind: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Click would call it `not a valid float range`."""
    assert f"is not a valid {kind};" in refused(capsys, monkeypatch, *words)


def test_many_mistakes_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of mistakes the first are named, and the others are counted."""
    (folder / "many.yaml").write_text(SMALLEST + "".join(f"key{n}: {n}\n" for n in range(5000)))
    status, _, err = run_in_process(capsys, monkeypatch, "train", "many.yaml")
    assert status == 2
    assert "many.yaml has 5,000 mistakes:\n- key0 is not a setting" in err
    assert err.splitlines()[-1].startswith("- and 4,9")
    assert len(err) < LONGEST_MESSAGE + 100


@pytest.mark.parametrize("is_variable", [False, True])
def test_bytes_that_are_no_text_are_refused(folder: Path, *, is_variable: bool) -> None:
    """Names are recorded as text, so that one in another encoding is refused by its place."""
    command = [os.fsencode(Path(sys.executable).with_name("adapterflow")), b"train"]
    environment = {**os.environb, **({b"MLFLOW_TRACKING_URI": b"\xff"} if is_variable else {})}
    arguments = [b"run.yaml"] if is_variable else [b"\xff.yaml"]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    place = "MLFLOW_TRACKING_URI" if is_variable else "argument 2"
    assert done.returncode == 2
    assert done.stderr == f"error: {place} is not UTF-8 text; correct it, or rename the file\n"


def test_a_removed_working_directory_is_told(tmp_path: Path) -> None:
    """A removed working directory is refused, as paths are relative to it."""
    (tmp_path / "gone").mkdir()
    program = Path(sys.executable).with_name("adapterflow")
    done = subprocess.run(
        ["/bin/sh", "-c", f"cd gone && rmdir ../gone && {program} down"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the working directory does not exist any more" in done.stderr


@pytest.mark.parametrize("name", ["TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR"])
def test_a_variable_that_is_no_number_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """MLflow would say so once it is imported."""
    monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "abc")
    error = refused(capsys, monkeypatch, "check", "run.yaml")
    assert f"MLFLOW_HTTP_REQUEST_{name} is 'abc'; it must be an integer of 0 or more" in error


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "PREFECT_API_URL"])
@pytest.mark.parametrize("address", ["not a url", "http://[x", "host:80", "https://"])
def test_an_address_that_is_none_is_named(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    address: str,
) -> None:
    """The libraries would say so late, or not name the variable."""
    monkeypatch.setenv(name, address)
    assert f"{name} is " in refused(capsys, monkeypatch, "train", "run.yaml")
