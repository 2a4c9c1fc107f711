"""A stand-in for a vLLM server: it speaks its protocol, and computes nothing.

It gives the answers and log-probabilities that an adapter was judged with, except for what a test
makes it do otherwise. What a real server does is tested in `tests/e2e/test_serving.py`.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tasks.records import Probe, ServingReference

BASE = "org/base"


@dataclass
class StandIn:
    """What the server is to do, and what it was asked."""

    reference: ServingReference
    shift: float = 0.0
    """Added to the log-probabilities of its base, in nats per token."""
    ignores_adapters: bool = False
    adapter_shift: float = 0.0
    """Added to the log-probabilities of adapters."""
    answers: dict[int, str] = field(default_factory=dict)
    """Answers by the number of their row, in place of those judged."""
    more_prompt_tokens: int = 0
    loads_adapters: bool = True
    sees_files: bool = True
    refuses: str = ""
    """Why it can't load an adapter."""
    token: str | None = None
    dies_after: int | None = None
    """The number of answers after which it breaks connections."""
    adapters: list[str] = field(default_factory=list)
    given: list[Mapping[str, Any]] = field(default_factory=list)
    """The requests for answers."""

    def __enter__(self) -> Self:
        """Start to listen."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def routes(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """What is asked for with a body."""
        answering = {"/v1/completions": self.log_probabilities, "/v1/chat/completions": self.chat}
        if not self.loads_adapters:
            return answering
        return {
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            **answering,
        }

    def version(self) -> dict[str, str]:
        """Name itself."""
        return {"version": "0.0-stand-in"}

    def models(self) -> dict[str, Any]:
        """List the base and the adapters, as vLLM does."""
        adapters = [{"id": one, "object": "model", "parent": BASE} for one in self.adapters]
        return {"object": "list", "data": [{"id": BASE, "object": "model"}, *adapters]}

    def load(self, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Load an adapter if there are files in its folder."""
        name, folder = body["lora_name"], Path(body["lora_path"])
        if not name:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            return {"error": {"message": message, "type": "InvalidUserInput", "code": 400}}
        if self.refuses:
            error = {"message": self.refuses, "type": "InternalServerError", "code": 500}
            return {"error": error}
        if not self.sees_files or not (folder / "adapter_config.json").is_file():
            message = f"Loading lora {name} failed: No adapter found for {folder}"
            return {"error": {"message": message, "type": "NotFoundError", "code": 404}}
        self.adapters.append(name)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Mapping[str, Any]) -> str:
        """Unload an adapter."""
        self.adapters.remove(body["lora_name"])
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def log_probabilities(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same log-probability for each token of a known sequence."""
        tokens = tuple(body["prompt"])
        probes = (*self.reference.fixed, *self.reference.held_out)
        probe: Probe = next(one for one in probes if one.tokens == tokens)
        is_base = body["model"] == BASE or self.ignores_adapters
        mean = probe.base + self.shift if is_base else probe.adapter + self.adapter_shift
        given = [None, *[mean] * len(tokens)]
        return {"choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": given}}]}

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer that was judged, or the one that a test set."""
        self.given.append(body)
        rows = self.reference.rows
        row = next(one for one in rows if [dict(m) for m in one.messages] == body["messages"])
        message = {"role": "assistant", "content": self.answers.get(row.row, row.answer)}
        usage = {"prompt_tokens": row.num_prompt_tokens + self.more_prompt_tokens}
        return {"choices": [{"index": 0, "message": message}], "usage": usage}


def _handler_of(server: StandIn) -> type[BaseHTTPRequestHandler]:
    """Return the handler of one server's requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({"/v1/models": server.models, "/version": server.version})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if server.dies_after is not None and len(server.given) >= server.dies_after:
                self.connection.close()
                return
            self._respond({path: partial(one, body) for path, one in server.routes.items()})

        def _respond(self, routes: Mapping[str, Callable[[], Any]]) -> None:
            given = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, body = 200, None
            if server.token is not None and given != server.token:
                status, body = 401, {"error": "Unauthorized"}
            elif self.path not in routes:
                status, body = 404, {"detail": "Not Found"}
            else:
                body = routes[self.path]()
                status = 200 if "error" not in body else body["error"]["code"]
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler
