"""A bundle under MLflow's own server: each request gets its own adapter's answer."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.objectives.generation import answer
from tasks.inference.adapters_on_base import found_adapters, load_adapters
from tasks.inference.serving import bundle_adapters

pytestmark = pytest.mark.slow

NAMES = ("tickets", "french", "poems")
PROMPTS = [f"What is {'very ' * (number % 4)}question {number}?" for number in range(8)]


class Server:
    """`mlflow models serve` on a bundle."""

    def __init__(self, bundle: Path, log: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["-m", str(bundle), "-p", self.url.rpartition(":")[2], "-h", "127.0.0.1"]
        # The server starts uvicorn by its name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PATH": path},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.url}/ping", timeout=5):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(log.read_text())

    def stop(self) -> None:
        """Kill the server and its workers, all in a session of its own."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, prompts: list[str], **params: object) -> list[str]:
        """Ask for answers of at most six tokens."""
        given = {"inputs": [{"prompt": prompt} for prompt in prompts]}
        body = json.dumps({**given, "params": {"max_new_tokens": 6, **params}})
        return json.loads(self.post(body))["predictions"]  # type: ignore[no-any-return]

    def post(self, body: str) -> str:
        """Send the body of a request, and return that of the response."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/invocations", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            return str(response.read().decode())


@pytest.fixture(scope="module")
def wanted(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSettings]:
    """Save three adapters that tell their base's type."""
    root = tmp_path_factory.mktemp("adapters")
    base = {"base_model": {"reference": str(tiny_base), "dtype": "float32"}}
    for seed, name in enumerate(NAMES):
        folder = tiny_adapter(tiny_base, root / name / "default", seed=seed, r=seed + 2)
        (folder / "manifest.json").write_text(json.dumps(base | {"template": "chat"}))
    return [AdapterSettings(name=name, source=str(root / name / "default")) for name in NAMES]


@pytest.fixture(scope="module")
def server(
    wanted: list[AdapterSettings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve them."""
    root = tmp_path_factory.mktemp("served")
    bundle_adapters(wanted, root / "bundle", None)
    running = Server(root / "bundle", root / "server.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def expected(wanted: list[AdapterSettings]) -> dict[str, list[str]]:
    """Answer each prompt alone, with each adapter, without a server."""
    with found_adapters(wanted) as folders:
        adapters = load_adapters(None, wanted, folders)
    found: dict[str, list[str]] = {}
    for name in NAMES:
        with adapters.using(name) as model:
            for prompt in PROMPTS:
                turn: Any = [{"role": "user", "content": prompt}]
                text = adapters.tokenizer.apply_chat_template(
                    turn, tokenize=False, add_generation_prompt=True
                )
                (answered,) = answer(
                    model,
                    adapters.tokenizer,
                    [Prompt(str(text), adds_special_tokens=False)],
                    max_new_tokens=6,
                    batch_size=1,
                )
                found.setdefault(name, []).append(answered)
    return found


def test_concurrent_requests_get_their_own_adapter_s_answers(
    server: Server, expected: dict[str, list[str]]
) -> None:
    """Of 24 requests at once, to three adapters in turn, each gets what its adapter answers."""
    asked = [(name, number) for number in range(len(PROMPTS)) for name in NAMES]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: server.ask([PROMPTS[one[1]]], adapter=one[0]), asked))
    assert answers == [[expected[name][number]] for name, number in asked]


def test_rows_come_back_in_order(server: Server, expected: dict[str, list[str]]) -> None:
    """Several rows of one request are answered in order; the first adapter is the default."""
    assert server.ask(PROMPTS) == expected["tickets"]


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["x"], {"adapter": "german"}, "possible: french, poems, tickets"),
        (["x"] * 257, {}, "at most 256"),
        (["x"], {"max_new_tokens": 2049}, "possible are 1 to 2048"),
        (["fox " * 2000], {}, "possible are 1 to 1018"),
    ],
    ids=["adapter", "rows", "answer", "prompt"],
)
def test_what_passes_a_limit_is_refused(
    server: Server, prompts: list[str], params: dict[str, object], message: str
) -> None:
    """Too much, or an adapter that is not there, is answered by status 400 and the reason."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.ask(prompts, **params)
    assert refused.value.code == 400
    assert message in refused.value.read().decode()
    assert server.ask(["x"])


def _refused(server: Server, body: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post(body)
    return refused.value.code, refused.value.read().decode()


@pytest.mark.parametrize("bad", [None, 3, {}, "", " \n", [], False], ids=json.dumps)
@pytest.mark.parametrize("form", ["inputs", "dataframe_records"])
def test_a_row_that_asks_nothing_refuses_the_request(
    server: Server, bad: object, form: str
) -> None:
    """The response is one message that names the row, without a stack trace or the data."""
    rows = [{"prompt": "fox " * 100}, {"prompt": bad}]
    code, body = _refused(server, json.dumps({form: rows}))
    assert code == 400
    assert json.loads(body)["message"].startswith("row 2: ")
    assert "stack_trace" not in body
    assert len(body) < 400


@pytest.mark.parametrize("levels", [100, 500, 900, 5000])
def test_deep_json_is_not_answered(server: Server, levels: int) -> None:
    """What Python can parse is refused by status 400; beyond that, MLflow's server answers 500."""
    deep = "[" * levels + "]" * levels
    code, body = _refused(server, f'{{"inputs": [{{"messages": {deep}}}]}}')
    assert code == (500 if levels == 5000 else 400)
    assert "Traceback" not in body
    assert server.ask(["x"])
