"""A password or token is in no file, database or output, wherever somebody put it."""

import json
from pathlib import Path

import pytest
from command_line_runs import run_in_new_process, run_in_process
from flow_runs import sums, tiny_config
from mlflow_server import free_port
from tiny_models import tiny_llama

from tasks.config import TrackingSettings
from tasks.runtime.addresses import masked, without_password
from tasks.tracking.store import connecting_uri, tracking_uri

CANARY = "c4n4ry"
FORMS = [
    f"http://{CANARY}@host:5000",
    f"https://{CANARY}:x-oauth-basic@host/rows.jsonl",
    f"http://team:{CANARY}@host:5000",
    f"http://:{CANARY}@host",
    f"http://team:12/{CANARY}@127.0.0.1:5000",
    f"http://team:12/{CANARY}@host",
    f"git+https://{CANARY}@host/org/name",
    f"https:///team:{CANARY}@host/rows.jsonl",
    f"https://host/rows.jsonl?token={CANARY}",
    f"https://host:8080/x?version=1&api_key={CANARY}",
    f"https://host/x?X-Amz-Signature={CANARY}&X-Amz-Date=1",
    f"https://host/#access_token={CANARY}",
    f"https://host/x?password2=a&sas={CANARY}&token[]={CANARY}",
    f"https://host/x?next=https%3A%2F%2Fteam%3A{CANARY}%40host",
    f"postgresql://team:{CANARY}@host/mlflow",
    f"postgresql://team:12/{CANARY}@host/mlflow",
    f"postgresql://team:a/b?{CANARY}#@with@signs@host:5432/mlflow",
    f"postgresql://team:a {CANARY}@host/mlflow",
    f"postgresql://team:12#{CANARY}@host/mlflow",
    f"postgresql://team:12?{CANARY}@host/mlflow",
    f"postgresql://host:5432/mlflow?user=team&password={CANARY}",
    f"postgresql://host/mlflow?user=team&pass%77ord={CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BUID%3Dteam%3BPWD%3D{CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER={{ODBC}};PWD={CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BPWD%20%3D%20{CANARY}",
    f"redis://:{CANARY}@host",
    f"s3://key:{CANARY}@bucket/rows.jsonl",
]
PLAIN = [
    "http://localhost:5000/#/models/tickets@champion",
    "http://[::1]:5000",
    "postgresql://team@host:5432/mlflow?sslmode=verify-full&sslkey=/keys/own.pem",
    "sqlite:////home/team@host/mlflow.db",
    "databricks://profile",
    "hf://datasets/org/name@revision/rows.jsonl",
    "models:/tickets@champion",
    "org/name",
]
PLACES = ["tracking.uri", "data.train", "data.eval", "base_model.source", "tracking.tags.origin"]


def told_in(folder: Path) -> list[str]:
    """Name the files below a folder that the canary is in, or whose name holds it."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(one) for one in files if CANARY.encode() in one.read_bytes() + str(one).encode()]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration of a base and rows that are not there."""
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tiny_config(Path("org/base"), Path("org/rows")).model_dump()))
    return file


@pytest.mark.parametrize("address", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(  # noqa: PLR0913 - fixtures
    address: str,
    place: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whatever form and setting: exit status 2, and the secret is in no output and no file."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    change = f"{place}={json.dumps(address)}"
    status, out, err = run_in_process(capsys, monkeypatch, "train", config, "--set", change)
    assert status == 2
    assert place.removesuffix(".origin") in err
    assert CANARY not in out + err
    assert told_in(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "{config}", "--set", "tracking={{uri: [{address}]}}"],
        ["train", "{config}", "--set", "{address}"],
        ["train", "{config}", "--set", "{address}?version=1"],
        ["train", "{config}", "--set", "training.optim={address}/{a_long_path}"],
        ["train", "{config}", "--set", "data.train=[{address}/{a_long_path}]"],
        ["train", "{config}", "--set", "tracking.uri=[{address}"],
        ["train", "{address}"],
        ["export", "{address}", "to"],
        ["combine", "to", "{address}", "{address}=0.5"],
        ["bundle", "to", "one={address}"],
        ["predict", "{address}", "rows.csv", "answers.csv"],
        ["history", "name", "--tracking-uri", "{address}"],
    ],
)
def test_no_mistake_repeats_a_secret(
    words: list[str],
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is wrong with what was given, the message has *** where a secret stood."""
    address = f"http://a-team:{CANARY * 6}@host:5000"
    places = {"config": config, "address": address, "a_long_path": "part/" * 20}
    given = [word.format(**places) for word in words]
    status, out, err = run_in_process(capsys, monkeypatch, *given)
    assert status == 2, err
    assert CANARY not in out + err


@pytest.mark.parametrize("address", PLAIN)
def test_an_address_without_a_secret_is_as_it_is(address: str) -> None:
    """Ports, names of databases' users, versions and files of keys are shown and accepted."""
    assert masked(address) == without_password(f"see {address} there")[4:-6] == address
    assert TrackingSettings(uri=address).uri == address


@pytest.mark.parametrize("address", FORMS)
def test_a_secret_in_the_variable_is_used_and_not_recorded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record's address leads to the variable's; so does one that an older version masked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    shown = tracking_uri(TrackingSettings())
    assert CANARY not in shown
    assert connecting_uri(shown) == address
    if address.startswith("http://team:c4n4ry"):
        assert connecting_uri("http://team:***@" + shown.rpartition("@")[2]) == address


@pytest.mark.slow
@pytest.mark.parametrize("store", ["embedded", "away"])
def test_a_training_keeps_no_secret_of_its_environment(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither home, databases, logs, outputs nor what is printed has a variable's secret."""
    file = tmp_path / "run.yaml"
    rows = sums(tmp_path / "sums.jsonl")
    file.write_text(tiny_config(tiny_llama(tmp_path / "base"), rows).model_dump_json())
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "SOME_API_KEY")
    for name in secrets:
        monkeypatch.setenv(name, CANARY)
    if store == "away":
        away = f"http://team:{CANARY}@127.0.0.1:{free_port()}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    done = run_in_new_process(tmp_path, "train", file)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert (tmp_path / "home/.prefect/prefect.db").exists()
    assert told_in(tmp_path) == []
