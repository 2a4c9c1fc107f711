"""A FAKE Hugging Face Hub for tests: it listens on 127.0.0.1 and keeps everything in memory.

It speaks as much of the Hub's protocol as the real clients (`huggingface_hub`, `transformers`,
`datasets`) use to create a repository, push to it, describe it and download from it, so that the
code under test runs unchanged. What it answers was modelled on those clients, not recorded from the
real Hub, and it differs in known ways: there is one user with one token that may do everything;
`main` is the only branch, and tags and pull requests do not exist; Xet is switched off, so that
large files travel as git-LFS; they are served directly, not by a redirect to a CDN; nothing is
paged, gated, rate-limited or compressed; model cards are not read; the dataset viewer is absent.
"""

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_stand_in_api import TOKEN, HubApi, Reply, Request
from hub_stand_in_git import Blob, Repo, goes_to_lfs


class HubStandIn:
    """The fake Hub, running for as long as the `with` block that it opens."""

    def __init__(self, root: Path) -> None:
        self.token = TOKEN
        self.home = root / "huggingface"
        self._api = HubApi()
        self._server = _Server(self._api)
        self._api.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go_away()

    def _serve(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def go_away(self) -> None:
        """Stop listening: connections are refused from now on."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def come_back(self) -> None:
        """Listen again at the same address, with all that was there."""
        self._server = _Server(self._api, self._server.server_port)
        self._serve()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self._api.endpoint

    @property
    def requests(self) -> list[str]:
        """What it was asked so far, such as `GET /api/models/org/name`, queries left out."""
        return self._api.requests

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        repo_type: str = "model",
        private: bool = False,  # noqa: FBT001, FBT002 - reads as create_repo's own argument does
    ) -> str:
        """Commit exactly these files, in a new repository or on top of a known one: its hash."""
        tree = {
            path: Blob(data, goes_to_lfs(path, len(data), data[:512]))
            for path, data in files.items()
        }
        with self._api.lock:
            new = Repo(repo_id, repo_type, private)
            repo = self._api.repos.setdefault((repo_type, repo_id), new)
            return repo.commit(tree, f"Commit {len(repo.history) + 1}").oid

    def files(
        self, repo_id: str, revision: str = "main", repo_type: str = "model"
    ) -> dict[str, bytes]:
        """Everything that a repository holds at a revision."""
        with self._api.lock:
            tree = self._api.repos[repo_type, repo_id].at(revision).tree
        return {path: blob.content for path, blob in tree.items()}

    def environment(self) -> dict[str, str]:
        """The variables that make a child process take this for the Hub, its caches included."""
        places = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets"}
        places |= {"HUGGINGFACE_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules"}
        places |= {"HF_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet", "HF_TOKEN_PATH": "token"}
        off = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        return (
            {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token}
            | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
            | {name: str(self.home / place) for name, place in places.items()}
            | dict.fromkeys(off, "0")
        )


def point_clients_at(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process, whose clients read their environment on import, take this for the Hub."""
    from huggingface_hub import HfFileSystem, close_session

    for module in _CLIENTS:  # one imported later would keep the stand-in's address for good
        import_module(module)
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    for target, setting in (_hub_settings(hub) | _library_settings(hub)).items():
        monkeypatch.setattr(target, setting)
    HfFileSystem.clear_instance_cache()
    close_session()


_CLIENTS = (
    "huggingface_hub.hf_api",
    "huggingface_hub.utils._cache_manager",
    "datasets",
    "transformers.utils.hub",
    "transformers.dynamic_module_utils",
)


def _hub_settings(hub: HubStandIn) -> dict[str, object]:
    ours = hub.environment()
    places = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE"]
    places += ["HF_XET_CACHE", "HF_TOKEN_PATH"]
    settings: dict[str, object] = {name: ours[name] for name in places}
    settings["HF_STORED_TOKENS_PATH"] = str(hub.home / "stored_tokens")
    settings["AGENT_HARNESSES_PATH"] = str(hub.home / ".agent_harnesses.json")
    settings["ENDPOINT"] = hub.endpoint
    url = "/{repo_id}/resolve/{revision}/{filename}"
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.endpoint + url
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": True, "HF_URL_HOSTS": frozenset({"127.0.0.1"})}
    return {f"huggingface_hub.constants.{name}": value for name, value in settings.items()} | {
        "huggingface_hub.hf_api.api.endpoint": hub.endpoint,
        "huggingface_hub.utils._cache_manager.HF_HUB_CACHE": ours["HF_HUB_CACHE"],
    }


def _library_settings(hub: HubStandIn) -> dict[str, object]:
    cache, modules = hub.home / "datasets", hub.home / "modules"
    url = f"{hub.endpoint}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}"
    settings: dict[str, object] = {"HF_ENDPOINT": hub.endpoint, "HUB_DATASETS_URL": url}
    settings |= {"HF_CACHE_HOME": str(hub.home), "HF_DATASETS_CACHE": cache}
    settings |= {"DOWNLOADED_DATASETS_PATH": cache / "downloads", "HF_MODULES_CACHE": modules}
    settings |= {"EXTRACTED_DATASETS_PATH": cache / "downloads" / "extracted"}
    settings |= {"HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False}
    return {f"datasets.config.{name}": value for name, value in settings.items()} | {
        "transformers.utils.hub._hf_api": None,
        "transformers.utils.hub.HF_MODULES_CACHE": str(modules),
        "transformers.dynamic_module_utils.HF_MODULES_CACHE": str(modules),
    }


class _Server(ThreadingHTTPServer):
    """One thread for each connection, one connection for each request: none outlives the server."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, api: HubApi, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.api = api


class _Handler(BaseHTTPRequestHandler):
    """HTTP itself: a body read to its end, a reply written out."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def _exchange(self) -> None:
        url = urlsplit(self.path)
        parts = tuple(unquote(part) for part in url.path.split("/") if part)
        query = parse_qs(url.query)
        request = Request(self.command, parts, query, self.headers, self._body())
        self._send(self.server.api.answer(request))

    do_GET = do_HEAD = do_POST = do_PUT = _exchange  # noqa: N815 - what http.server calls

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        length = {"Content-Length": str(len(reply.body)), "Connection": "close"}
        for name, value in (reply.headers | length).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it overrides
        """Keep quiet; the requests are in the list."""
