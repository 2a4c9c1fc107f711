"""The repositories behind the fake Hub: commits that never change, and the branch that names one.

No git runs here. A commit is a mapping of paths to contents, kept in memory, and its name is a hash
of the repository, its parent, its message and everything it holds.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypeAlias

Json: TypeAlias = dict[str, object]

LARGE = frozenset(
    {".arrow", ".bin", ".gguf", ".gz", ".h5", ".npz", ".onnx", ".parquet", ".pt", ".pth"}
    | {".safetensors", ".tar", ".zip", ".zst"}
)
GIT_ATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LARGE)
).encode()


class HubError(Exception):
    """A refusal, with the status and headers from which the real client builds its exception."""

    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        plain = message.encode("unicode_escape").decode("ascii")  # all that a header can carry
        self.headers = {"X-Error-Code": code, "X-Error-Message": plain, "X-Repo-Commit": commit}


def goes_to_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps this file outside git: by its suffix, its size or its first bytes."""
    return PurePosixPath(path).suffix in LARGE or size > 10 * 2**20 or b"\0" in sample


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """The name of the content among the large files."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git itself keeps: for a large file only a note of its hash and its size."""
        if not self.lfs:
            return self.content
        note = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
        return note.format(self.sha256, len(self.content)).encode()

    @cached_property
    def git_oid(self) -> str:
        """The name git gives to what it keeps."""
        return _sha1(b"blob %d\0" % len(self.pointer), self.pointer)

    @property
    def etag(self) -> str:
        """The name under which clients cache the file."""
        return self.sha256 if self.lfs else self.git_oid

    def entry(self, path: str) -> Json:
        """The file as a line of a listing."""
        size = len(self.content)
        line: Json = {"type": "file", "oid": self.git_oid, "size": size, "path": path}
        if self.lfs:
            line["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": len(self.pointer)}
        return line

    def sibling(self, path: str, *, detailed: bool) -> Json:
        """The file as the description of its repository mentions it."""
        line: Json = {"rfilename": path}
        if detailed:
            line |= {"size": len(self.content), "blobId": self.git_oid}
        if detailed and self.lfs:
            sizes = {"size": len(self.content), "pointerSize": len(self.pointer)}
            line["lfs"] = {"sha256": self.sha256, **sizes}
        return line


@dataclass(frozen=True)
class Commit:
    """Everything a repository held at one moment."""

    oid: str
    title: str
    description: str
    date: str
    tree: Mapping[str, Blob]

    def file(self, path: str) -> Blob:
        """The file at a path."""
        if path not in self.tree:
            raise HubError(404, "EntryNotFound", "Entry not found", self.oid)
        return self.tree[path]

    def entries(self, folder: str, *, recursive: bool) -> list[Json]:
        """What lies in a folder, sub-folders included; with `recursive`, what lies in those too."""
        inside = {path: blob for path, blob in self.tree.items() if _is_in(path, folder)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist", self.oid)
        depth = len(PurePosixPath(folder).parts)
        found = [self._folder(name) for name in _folders(inside) if _is_in(name, folder)]
        found += [blob.entry(path) for path, blob in inside.items()]
        found.sort(key=lambda entry: str(entry["path"]))
        return [entry for entry in found if recursive or str(entry["path"]).count("/") == depth]

    def lookup(self, paths: Iterable[str]) -> list[Json]:
        """Those of the paths that exist, whether files or folders."""
        folders = _folders(self.tree)
        return [
            self.tree[path].entry(path) if path in self.tree else self._folder(path)
            for path in paths
            if path in self.tree or path in folders
        ]

    def _folder(self, folder: str) -> Json:
        names = [blob.git_oid for path, blob in self.tree.items() if _is_in(path, folder)]
        oid = _sha1("".join(names).encode())
        return {"type": "directory", "oid": oid, "size": 0, "path": folder}


@dataclass
class Repo:
    """A repository with one branch, `main`, and every commit it ever had."""

    repo_id: str
    repo_type: str
    private: bool
    history: list[Commit] = field(default_factory=list)

    def commit(self, tree: Mapping[str, Blob], title: str, description: str = "") -> Commit:
        """Put a commit on top of `main`: all of it or, where anything before failed, nothing."""
        parent = self.history[-1].oid if self.history else ""
        names = [f"{path} {blob.git_oid}" for path, blob in sorted(tree.items())]
        about = [self.repo_type, self.repo_id, parent, title, description, *names]
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        oid = _sha1("\n".join(about).encode())
        new = Commit(oid, title, description, now, MappingProxyType(dict(tree)))
        self.history.append(new)
        return new

    def at(self, revision: str) -> Commit:
        """The commit that a revision names: `main` or a full commit hash."""
        if revision == "main" and self.history:
            return self.history[-1]
        for commit in self.history:
            if commit.oid == revision:
                return commit
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def log(self, revision: str) -> list[Json]:
        """The commits up to a revision, newest first."""
        upto = self.history.index(self.at(revision)) + 1
        return [
            {
                "id": each.oid,
                "title": each.title,
                "message": each.description,
                "date": each.date,
                "authors": [{"user": "stand-in"}],
            }
            for each in reversed(self.history[:upto])
        ]

    def describe(self, revision: str, *, detailed: bool) -> Json:
        """The repository as `model_info` and `dataset_info` receive it."""
        commit = self.at(revision)
        siblings = [blob.sibling(path, detailed=detailed) for path, blob in commit.tree.items()]
        counts = {"downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
        dates = {"createdAt": self.history[0].date, "lastModified": commit.date}
        about = {"id": self.repo_id, "author": self.repo_id.split("/")[0], "sha": commit.oid}
        return about | {"private": self.private, "siblings": siblings} | counts | dates


def tree_after(
    before: Mapping[str, Blob], operations: Iterable[Json], objects: Mapping[str, bytes]
) -> dict[str, Blob]:
    """The files after a commit's operations; the files before them stay as they are."""
    tree = dict(before)
    for operation in operations:
        value = operation["value"]
        assert isinstance(value, dict)
        match operation["key"]:
            case "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            case "lfsFile":
                tree[value["path"]] = Blob(_uploaded(value["oid"], objects), lfs=True)
            case "deletedFile" | "deletedFolder":
                _delete(tree, value["path"].rstrip("/"))
    return tree


def _uploaded(oid: str, objects: Mapping[str, bytes]) -> bytes:
    if oid not in objects:
        raise HubError(400, "", f"LFS object {oid} was never uploaded")
    return objects[oid]


def _delete(tree: dict[str, Blob], path: str) -> None:
    gone = [name for name in tree if name == path or _is_in(name, path)]
    if not gone:
        raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
    for name in gone:
        del tree[name]


def _is_in(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _folders(paths: Iterable[str]) -> set[str]:
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}


def _sha1(*parts: bytes) -> str:
    return hashlib.sha1(b"".join(parts), usedforsecurity=False).hexdigest()
