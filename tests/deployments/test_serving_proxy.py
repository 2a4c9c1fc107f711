"""The proxy between clients and vLLM, by a real nginx in front of a stand-in of vLLM."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from nginx_proxy import serving_proxy

CLIENT, ADMINISTRATOR = "clients-token", "administrators-token"
CHAT = "/v1/chat/completions"


@dataclass
class Upstream:
    """A stand-in of vLLM: it answers each request, and remembers what it was asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Authorization` of each request."""
    bodies: list[bytes] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    """When a streamed answer's second part is sent."""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the handler of its requests."""
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                upstream.asked.append((self.path, self.headers.get("authorization", "")))
                self._send("application/json", b"{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                upstream.bodies.append(body)
                if b'"stream": true' not in body:
                    self.do_GET()
                    return
                upstream.asked.append((self.path, self.headers.get("authorization", "")))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"9\r\ndata: 1\n\n\r\n")
                upstream.goes_on.wait(20)
                self.wfile.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

            def _send(self, kind: str, content: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        return Handler


@dataclass
class Proxy:
    """nginx with the project's configuration, and the stand-in behind it."""

    port: int
    upstream: Upstream

    def ask(
        self, method: str, path: str, token: str | None = CLIENT, body: str = "{}"
    ) -> HTTPResponse:
        """Send a request with the path as it is written here."""
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body if method == "POST" else None, headers)
        return connection.getresponse()


@contextmanager
def proxy(folder: Path, client: str = CLIENT) -> Iterator[Proxy]:
    """Start nginx in front of the stand-in."""
    upstream = Upstream()
    http = ThreadingHTTPServer(("127.0.0.1", 0), upstream.handler())
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        address = f"127.0.0.1:{http.server_address[1]}"
        with serving_proxy(folder, address, ADMINISTRATOR, client) as port:
            yield Proxy(port, upstream)
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Share one nginx, as starting it takes longer than asking it."""
    with proxy(tmp_path_factory.mktemp("nginx")) as one:
        yield one


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1/load_lora_adapter?lora_name=x",
        "//v1/load_lora_adapter",
        "/v1//load_lora_adapter",
        "/v1/./load_lora_adapter",
        "/v1/../v1/load_lora_adapter",
        "/v1/chat/completions/../../load_lora_adapter",
        "/v1/chat/completions/..%2f..%2fload_lora_adapter",
        "/v1/chat/completions%2f..%2f..%2fload_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/%76%31%2fload_lora_adapter",
        "/v1/%256coad_lora_adapter",
        "/V1/LOAD_LORA_ADAPTER",
        "/v1/Load_LoRA_Adapter",
        "/v1/load_lora_adapter;/v1/models",
        "/v1/models/load_lora_adapter",
        "/v1/models%0a/load_lora_adapter",
        "/v1\\load_lora_adapter",
        "http://vllm:8000/v1/load_lora_adapter",
        # What vLLM has beside it, some of it without a token.
        "/version",
        "/metrics",
        "/tokenize",
        "/invocations",
        "/openapi.json",
        "/v1/responses",
        "/",
    ],
)
def test_nothing_but_the_listed_paths_reaches_vllm(running: Proxy, path: str) -> None:
    """However a path is written, a client who has a token gets 403, and vLLM is not asked."""
    running.upstream.asked.clear()
    body = json.dumps({"lora_name": "mine", "lora_path": "/etc"})
    for method in ("POST", "GET", "PUT"):
        assert running.ask(method, path, body=body).status == 403, method
    assert not running.upstream.asked


@pytest.mark.parametrize(
    ("written", "reaches"),
    [
        ("/v1/load_lora_adapter/../models", "/v1/models"),
        ("/v1/load_lora_adapter/%2e%2e/chat/completions", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1/models?a=/v1/load_lora_adapter", "/v1/models"),
    ],
)
def test_a_path_is_passed_on_as_it_is_listed(running: Proxy, written: str, reaches: str) -> None:
    """No other way to write it reaches vLLM, which could read it in another way than nginx."""
    running.upstream.asked.clear()
    assert running.ask("POST", written).status == 200
    assert [path for path, _ in running.upstream.asked] == [reaches]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("POST", "/v1/completions"), ("GET", "/v1/models")]
)
def test_the_clients_token_is_replaced_by_vllms(running: Proxy, method: str, path: str) -> None:
    """Clients have a token of their own, and the request arrives with the administrator's."""
    running.upstream.asked.clear()
    assert running.ask(method, path, body='{"model": "tickets-7"}').status == 200
    assert running.upstream.asked == [(path, f"Bearer {ADMINISTRATOR}")]


@pytest.mark.parametrize("token", [None, "", "wrong", CLIENT.upper(), CLIENT + "x", ADMINISTRATOR])
def test_a_wrong_token_is_refused(running: Proxy, token: str | None) -> None:
    """Without the clients' token nothing is asked; the administrator's is none for clients."""
    running.upstream.asked.clear()
    answer = running.ask("POST", CHAT, token)
    assert answer.status == 401
    assert "token" in json.loads(answer.read())["error"]["message"]
    assert not running.upstream.asked


def test_health_needs_no_token(running: Proxy) -> None:
    """Probes and load balancers have none."""
    assert running.ask("GET", "/health", token=None).status == 200


def test_an_answer_is_streamed(running: Proxy) -> None:
    """A client has the first token while vLLM still computes the second."""
    running.upstream.goes_on.clear()
    answer = running.ask("POST", CHAT, body='{"stream": true}')
    first = answer.read(9)
    assert not running.upstream.goes_on.is_set()
    running.upstream.goes_on.set()
    assert first + answer.read() == b"data: 1\n\ndata: 2\n\n"


def test_a_long_prompt_arrives_as_it_was_sent(running: Proxy) -> None:
    """A megabyte of text is within the limit, which nginx alone would set lower."""
    body = json.dumps({"messages": [{"role": "user", "content": "ä" * 2_000_000}]})
    assert running.ask("POST", CHAT, body=body).status == 200
    assert running.upstream.bodies[-1] == body.encode()


def test_no_client_gets_in_while_no_token_is_set(tmp_path: Path) -> None:
    """A variable that was forgotten closes the door instead of opening it."""
    with proxy(tmp_path, client="") as closed:
        for token in ("", " ", "x", None):
            assert closed.ask("POST", CHAT, token).status == 401
        assert not closed.upstream.asked
