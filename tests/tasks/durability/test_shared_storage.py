"""A process that does not see the storage of a set is found before it trains."""

import socket
from pathlib import Path

import pytest
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from tasks.durability.shared_storage import UNSEEN, check_proof, leave_proof
from tasks.errors import UserError


def test_same_storage_is_proven(tmp_path: Path) -> None:
    """Both files are found where both folders are shared."""
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        leave_proof(tmp_path / "variants", "set-1")
        check_proof(tmp_path / "variants", "set-1")


@pytest.mark.parametrize("other", ["outputs", "results", "another set's"])
def test_other_storage_is_refused_with_the_host(tmp_path: Path, other: str) -> None:
    """One folder that is not shared is enough, and so are the files of another set."""
    here = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}
    with temporary_settings(here):
        leave_proof(tmp_path / "variants", "set-1")
    if other == "another set's":
        (tmp_path / "variants/.storage-set-1").write_text("set-2")
    folder = tmp_path / ("elsewhere" if other == "outputs" else "variants")
    results = tmp_path / ("elsewhere" if other == "results" else "results")
    there = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}
    with (
        temporary_settings(there),
        pytest.raises(UserError, match=f"{socket.gethostname()} {UNSEEN}"),
    ):
        check_proof(folder, "set-1")
