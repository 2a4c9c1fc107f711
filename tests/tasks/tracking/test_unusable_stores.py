"""A store that can't be used is reported in one line, without the database's statements."""

from pathlib import Path

import pytest
from command_line_runs import run_in_process
from full_disk import file_size_limit

from tasks.config import TrackingSettings
from tasks.errors import AdapterflowError, UserError
from tasks.tracking import Registry, check_store


@pytest.mark.slow
def test_a_full_disk_under_a_new_store_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQLite's reason is printed, without SQLAlchemy's page and without a traceback."""
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "tickets")
    with (
        file_size_limit(100_000),
        pytest.raises(AdapterflowError, match=r"mlflow\.db: .*disk") as it,
    ):
        registry.versions()
    assert not isinstance(it.value, UserError)
    assert "SQL" not in str(it.value) + "".join(capfd.readouterr()).replace("SQLite", "")


@pytest.mark.parametrize("uri", ["mysql://user@host/db", "postgresql+pg8000://user@host/db"])
def test_a_database_without_its_driver_is_a_mistake(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a command needs the store for, the package is named that is missing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(Path("/tmp"))  # noqa: S108 - nothing is written there
    for words in (
        ("history", "tickets"),
        ("rollback", "tickets", "--reason=because"),
        ("export", "models:/tickets@champion", "new"),
        ("push", "models:/tickets@champion", "org/name"),
        ("combine", "new", "models:/a@champion", "models:/b@champion"),
        ("bundle", "new", "a=models:/a@champion"),
    ):
        status, out, err = run_in_process(capsys, monkeypatch, *words)
        assert (status, out) == (2, "")
        assert f"MLflow at {uri} needs the Python package" in err
        assert len(err.splitlines()) == 1


def test_a_file_that_is_no_database_is_a_mistake(tmp_path: Path) -> None:
    """SQLite's reason is printed: the file is not a database."""
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    uri = check_store(TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    with pytest.raises(UserError, match="file is not a database"):
        Registry(uri, "tickets").versions()
