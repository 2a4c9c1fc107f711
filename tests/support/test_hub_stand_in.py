"""The fake Hub answers the real clients as the Hub would."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import httpx2
import pytest
from hub_stand_in import HubStandIn, point_clients_at
from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig

WEIGHTS = bytes(range(256)) * 400
FILES = {"README.md": b"# A card\n", "adapter.safetensors": WEIGHTS, "logs/loss.json": b"[1, 2]"}
ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running fake Hub that this process takes for the real one."""
    with HubStandIn(tmp_path) as running:
        point_clients_at(running, monkeypatch)
        yield running


def push(folder: Path, files: dict[str, bytes], *, private: bool = False) -> str:
    """Push a folder the way the pipeline does; the hash of the commit."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    HfApi().create_repo("org/adapter", private=private, exist_ok=True)
    return HfApi().upload_folder(repo_id="org/adapter", folder_path=folder).oid


def contents(folder: str) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_pushed_folder_comes_back_byte_for_byte(hub: HubStandIn, tmp_path: Path) -> None:
    """A folder pushed in one commit is downloaded by that commit's hash unchanged."""
    commit = push(tmp_path / "run", FILES)
    back = contents(snapshot_download("org/adapter", revision=commit))
    back.pop(".gitattributes")
    assert back == FILES
    assert hub.files("org/adapter", commit) == back | {
        ".gitattributes": hub.files("org/adapter")[".gitattributes"]
    }
    assert f"PUT /lfs/{hashlib.sha256(WEIGHTS).hexdigest()}" in hub.requests


def test_an_older_revision_keeps_its_bytes(hub: HubStandIn, tmp_path: Path) -> None:
    """A later push moves `main` and leaves the commit before it as it was."""
    first = push(tmp_path / "run", FILES)
    second = push(tmp_path / "run", FILES | {"adapter.safetensors": WEIGHTS[::-1]})
    old = hf_hub_download("org/adapter", "adapter.safetensors", revision=first)
    new = hf_hub_download("org/adapter", "adapter.safetensors")
    assert Path(old).read_bytes() == WEIGHTS
    assert Path(new).read_bytes() == WEIGHTS[::-1]
    assert [commit.commit_id for commit in HfApi().list_repo_commits("org/adapter")][:2] == [
        second,
        first,
    ]


def test_an_unchanged_folder_makes_no_commit(hub: HubStandIn, tmp_path: Path) -> None:
    """Pushing the same bytes again names the commit that already holds them."""
    first = push(tmp_path / "run", FILES)
    assert push(tmp_path / "run", FILES) == first


def test_a_stale_parent_is_refused_and_changes_nothing(hub: HubStandIn, tmp_path: Path) -> None:
    """A commit on top of anything but the newest one is refused whole."""
    first = push(tmp_path / "run", FILES)
    second = push(tmp_path / "run", FILES | {"extra.txt": b"more"})
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="org/adapter", parent_commit=first
        )
    assert HfApi().model_info("org/adapter").sha == second


def test_files_are_deleted_by_a_commit(hub: HubStandIn, tmp_path: Path) -> None:
    """A deleted file and a deleted folder are gone from `main` and stay in the history."""
    first = push(tmp_path / "run", FILES)
    HfApi().delete_file("README.md", "org/adapter")
    HfApi().delete_folder("logs", "org/adapter")
    assert set(hub.files("org/adapter")) == {".gitattributes", "adapter.safetensors"}
    assert set(FILES) < set(hub.files("org/adapter", first))


def test_a_repository_is_described_at_a_revision(hub: HubStandIn) -> None:
    """Listings and descriptions show the names, sizes and hashes of the revision asked for."""
    first = hub.add_repo("org/model", FILES)
    hub.add_repo("org/model", {"other.txt": b""})
    info = HfApi().model_info("org/model", revision=first, files_metadata=True)
    assert info.sha == first
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    assert sizes == {path: len(content) for path, content in FILES.items()}
    top = {entry.path for entry in HfApi().list_repo_tree("org/model", revision=first)}
    assert top == {"README.md", "adapter.safetensors", "logs"}
    (weights,) = HfApi().get_paths_info("org/model", "adapter.safetensors", revision=first)
    assert getattr(weights, "lfs").sha256 == hashlib.sha256(WEIGHTS).hexdigest()  # noqa: B009


def test_what_is_missing_raises_the_clients_own_errors(hub: HubStandIn) -> None:
    """An unknown repository, revision and file are distinguished."""
    hub.add_repo("org/model", {"config.json": b"{}"})
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("org/nothing")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("org/model", revision="no-such-bränch")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "config.json", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "no-such-file.json")


def test_a_private_repository_needs_the_token(hub: HubStandIn) -> None:
    """A private repository opens for the token, and without it seems not to exist."""
    hub.add_repo("org/secret", {"config.json": b"{}"}, private=True)
    assert HfApi().model_info("org/secret").private
    with pytest.raises(RepositoryNotFoundError) as refusal:
        hf_hub_download("org/secret", "config.json", token=False)
    assert refusal.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_wrong").model_info("org/secret")  # noqa: S106


def test_nobody_writes_without_the_token(hub: HubStandIn) -> None:
    """Neither a new repository nor a commit to a public one is taken from a stranger."""
    hub.add_repo("org/model", FILES)
    stranger = HfApi(token=False)
    with pytest.raises(HfHubHTTPError, match="401"):
        stranger.create_repo("org/new")
    with pytest.raises(RepositoryNotFoundError):
        stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="org/model")
    assert hub.files("org/model") == FILES


def test_an_upload_must_match_its_hash(hub: HubStandIn) -> None:
    """A large file is refused where its bytes are not those announced, or none were."""
    hub.add_repo("org/model", {})
    oid = hashlib.sha256(b"announced").hexdigest()
    url = f"{hub.endpoint}/lfs/{oid}"
    assert httpx2.put(url, content=b"announced").status_code == 403
    httpx2.post(
        f"{hub.endpoint}/org/model.git/info/lfs/objects/batch",
        headers={"Authorization": f"Bearer {hub.token}"},
        json={"objects": [{"oid": oid, "size": 9}]},
    )
    assert httpx2.put(url, content=b"something").status_code == 400
    assert httpx2.put(url, content=iter([b"annou", b"nced"])).status_code == 200


def test_transformers_reads_a_configuration(hub: HubStandIn) -> None:
    """`AutoConfig` finds a model's configuration, at `main` and at an older commit."""
    small = {"model_type": "llama", "hidden_size": 32}
    first = hub.add_repo("org/model", {"config.json": json.dumps(small).encode()})
    hub.add_repo("org/model", {"config.json": json.dumps(small | {"hidden_size": 64}).encode()})
    assert AutoConfig.from_pretrained("org/model").hidden_size == 64
    assert AutoConfig.from_pretrained("org/model", revision=first).hidden_size == 32


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_rows(hub: HubStandIn, *, streaming: bool) -> None:
    """`load_dataset` reads a repository that holds lines of JSON, at once or as a stream."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    hub.add_repo("org/rows", {"data/train.jsonl": lines}, repo_type="dataset")
    rows = datasets.load_dataset("org/rows", split="train", streaming=streaming)
    assert list(rows) == ROWS


def test_a_dataset_is_pushed_and_read_at_a_revision(hub: HubStandIn) -> None:
    """A dataset pushed as parquet is read again by the hash of its commit."""
    commit = datasets.Dataset.from_list(ROWS).push_to_hub("org/rows").oid
    datasets.Dataset.from_list(ROWS[:1]).push_to_hub("org/rows")
    assert list(datasets.load_dataset("org/rows", split="train", revision=commit)) == ROWS
    assert list(datasets.load_dataset("org/rows", split="train")) == ROWS[:1]


def test_a_child_process_finds_the_stand_in(hub: HubStandIn, tmp_path: Path) -> None:
    """The environment alone leads another process here, and keeps its cache here too."""
    hub.add_repo("org/secret", {"config.json": b"{}"}, private=True)
    code = "import huggingface_hub as h; print(h.hf_hub_download('org/secret', 'config.json'))"
    environment = os.environ | hub.environment()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_caches_stay_inside_and_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads land below the given folder, and after the block nobody answers any more."""
    with HubStandIn(tmp_path) as hub:
        point_clients_at(hub, monkeypatch)
        hub.add_repo("org/model", FILES)
        assert Path(snapshot_download("org/model")).is_relative_to(tmp_path)
        assert {repo.repo_id for repo in scan_cache_dir().repos} == {"org/model"}
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{hub.endpoint}/api/models/org/model")
