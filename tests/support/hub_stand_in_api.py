"""What the fake Hub answers: one method or function for each thing that its clients ask."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Self
from urllib.parse import parse_qs

from hub_stand_in_git import GIT_ATTRIBUTES, Blob, HubError, Json, Repo, goes_to_lfs, tree_after

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
WRITES = {"preupload", "commit", "info"}
TOKEN = "hf_the_only_token_of_the_stand_in"  # noqa: S105 - opens nothing real


@dataclass(frozen=True)
class Request:
    """One request, its path taken apart at the slashes and unquoted piece by piece."""

    method: str
    parts: tuple[str, ...]
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self) -> Json:
        """The body, where it is one JSON object."""
        parsed: Json = json.loads(self.body)
        return parsed

    def asks(self, name: str) -> bool:
        """Whether a yes-or-no parameter of the query says yes."""
        return self.query.get(name, [""])[-1].lower() in {"1", "true"}


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Self:
        """An answer in JSON."""
        typed = {"Content-Type": "application/json"} | (headers or {})
        return cls(status, json.dumps(value).encode(), typed)


@dataclass
class HubApi:
    """Everything the fake Hub keeps, and its answers."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    expected: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Reply:
        """Answer one request; requests are taken one after the other."""
        with self.lock:
            self.requests.append(f"{request.method} /{'/'.join(request.parts)}")
            try:
                return self._route(request)
            except HubError as refusal:
                headers = {name: value for name, value in refusal.headers.items() if value}
                return Reply.of({"error": str(refusal)}, refusal.status, headers)

    def may(self, request: Request) -> bool:
        """Whether a request carries the token; one with another token is refused outright."""
        sent = request.headers.get("Authorization", "")
        if sent not in {"", f"Bearer {TOKEN}"}:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return bool(sent)

    def _route(self, request: Request) -> Reply:
        match (request.method, *request.parts):
            case "POST", "api", "repos", "create":
                return self._create(request)
            case "POST", "api", "validate-yaml":
                return Reply.of({"errors": [], "warnings": []})
            case "GET", "api", "whoami-v2" if self.may(request):
                return Reply.of({"type": "user", "name": "stand-in", "orgs": []})
            case "PUT", "lfs", oid:
                return self._receive(oid, request.body)
        return self._route_in_repo(request)

    def _route_in_repo(self, request: Request) -> Reply:
        parts = request.parts[1:] if request.parts[:1] == ("api",) else request.parts
        kind = KINDS.get("".join(parts[:1]), "model")
        owner, name, *rest = (*(parts[1:] if parts[:1] and parts[0] in KINDS else parts), "", "")
        action, *arguments = [part for part in rest if part] or ["revision"]
        speak = ACTIONS.get((request.method.replace("HEAD", "GET"), action))
        if speak is None:
            raise HubError(404, "", f"The stand-in does not speak {self.requests[-1]}")
        repo = self._repo((kind, f"{owner}/{name.removesuffix('.git')}"), request, action)
        return speak(self, repo, request, arguments)

    def _repo(self, key: tuple[str, str], request: Request, action: str) -> Repo:
        known = self.may(request)
        repo = self.repos.get(key)
        if not known and (repo is None or repo.private or action in WRITES):
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        if repo is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return repo

    def _create(self, request: Request) -> Reply:
        if not self.may(request):
            raise HubError(401, "", "Invalid username or password.")
        asked = request.json()
        repo_id = f"{asked.get('organization') or 'stand-in'}/{asked['name']}"
        kind = str(asked.get("type") or "model")
        prefix = "" if kind == "model" else f"{kind}s/"
        url = {"url": f"{self.endpoint}/{prefix}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.repos:
            message = "You already created this repo"
            return Reply.of(url | {"error": message}, 409, {"X-Error-Message": message})
        repo = Repo(repo_id, kind, asked.get("visibility") == "private")
        repo.commit({".gitattributes": Blob(GIT_ATTRIBUTES, lfs=False)}, "initial commit")
        self.repos[kind, repo_id] = repo
        return Reply.of(url)

    def _receive(self, oid: str, content: bytes) -> Reply:
        if oid not in self.expected:
            raise HubError(403, "", "No upload was announced under this name")
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "", "The content is not what its sha256 says")
        self.objects[oid] = content
        return Reply(200, b"")


def _describe(_hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    revision = arguments[0] if arguments else "main"
    return Reply.of(repo.describe(revision, detailed=request.asks("blobs")))


def _list(_hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    revision, folder = arguments[0], "/".join(arguments[1:])
    recursive = request.asks("recursive")
    return Reply.of(repo.at(revision).entries(folder, recursive=recursive))


def _look_up(_hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Reply.of(repo.at(arguments[0]).lookup(paths))


def _log(_hub: HubApi, repo: Repo, _request: Request, arguments: list[str]) -> Reply:
    return Reply.of(repo.log(arguments[0]))


def _refs(_hub: HubApi, repo: Repo, _request: Request, _arguments: list[str]) -> Reply:
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.at("main").oid}
    return Reply.of({"branches": [main], "tags": [], "converts": [], "pullRequests": []})


def _resolve(_hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    commit = repo.at(arguments[0])
    blob = commit.file("/".join(arguments[1:]))
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        size = str(len(blob.content))
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": size}
    return _part(blob.content, headers, request.headers.get("Range", ""))


def _part(content: bytes, headers: dict[str, str], wanted: str) -> Reply:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if asked is None:
        return Reply(200, content, headers)
    first, total = int(asked[1]), len(content)
    last = min(int(asked[2] or total), total - 1)
    if first > last:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{total}"})
    span = {"Content-Range": f"bytes {first}-{last}/{total}"}
    return Reply(206, content[first : last + 1], headers | span)


def _prepare(_hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    tree = repo.at(arguments[0]).tree
    announced = request.json()["files"]
    assert isinstance(announced, list)
    answers = []
    for file in announced:
        path, known = file["path"], tree.get(file["path"])
        large = goes_to_lfs(path, file["size"], base64.b64decode(file["sample"]))
        oid = {"oid": known.etag} if known else {}
        mode = "lfs" if large else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | oid)
    return Reply.of({"files": answers})


def _commit(hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    if arguments != ["main"] or request.asks("create_pr"):
        raise HubError(400, "", "The stand-in takes commits to main only, and no pull requests")
    header, *operations = [json.loads(line) for line in request.body.splitlines() if line]
    about, top = header["value"], repo.at("main")
    if not top.oid.startswith(about.get("parentCommit", "")):
        raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
    tree = tree_after(top.tree, operations, hub.objects)
    oid = repo.commit(tree, about["summary"], about.get("description", "")).oid
    prefix = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
    url = f"{hub.endpoint}/{prefix}{repo.repo_id}/commit/{oid}"
    return Reply.of({"success": True, "commitOid": oid, "commitUrl": url})


def _lfs(hub: HubApi, repo: Repo, request: Request, arguments: list[str]) -> Reply:
    asked = request.json()
    if arguments[-1] == "verify":
        stored = hub.objects.get(str(asked["oid"]))
        return Reply.of({}, 200 if stored is not None and len(stored) == asked["size"] else 404)
    objects = asked["objects"]
    assert isinstance(objects, list)
    verify = {"href": f"{hub.endpoint}/api/{repo.repo_type}s/{repo.repo_id}/info/verify"}
    for each in objects:
        if each["oid"] not in hub.objects:
            hub.expected.add(each["oid"])
            upload = {"href": f"{hub.endpoint}/lfs/{each['oid']}"}
            each["actions"] = {"upload": upload, "verify": verify}
    return Reply.of({"transfer": "basic", "objects": objects})


ACTIONS: dict[tuple[str, str], Callable[[HubApi, Repo, Request, list[str]], Reply]] = {
    ("GET", "revision"): _describe,
    ("GET", "tree"): _list,
    ("POST", "paths-info"): _look_up,
    ("GET", "commits"): _log,
    ("GET", "refs"): _refs,
    ("GET", "resolve"): _resolve,
    ("POST", "preupload"): _prepare,
    ("POST", "commit"): _commit,
    ("POST", "info"): _lfs,
}
