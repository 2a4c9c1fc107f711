"""A real vLLM as compose starts it, and clients who reach it through the proxy."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from nginx_proxy import serving_proxy
from openai import AuthenticationError, OpenAI, PermissionDeniedError
from plain_adapters import lora_folder
from tiny_models import tiny_llama
from vllm_process import FOR_TESTS, PROGRAM, needs_vllm, reserved_port, running_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

START = ROOT / "deployments/production/serving/start.sh"
ADMINISTRATOR, CLIENT = "administrators-token", "clients-token"
BASE, COMMIT = "tests/tiny-llama", "0123456789abcdef0123456789abcdef01234567"


def cached(base: Path, home: Path) -> None:
    """Put a base into a Hub cache, as if it had been downloaded."""
    folder = home / "hub" / f"models--{BASE.replace('/', '--')}"
    shutil.copytree(base, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


def adapter(base: Path, folder: Path, seed: int) -> Path:
    """Save an adapter that names the base by its Hub id and commit."""
    lora_folder(base, folder, seed=seed, r=8, target_modules="all-linear")
    file = folder / "adapter_config.json"
    named = {"base_model_name_or_path": BASE, "revision": COMMIT}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    return folder


def client(port: int, token: str) -> OpenAI:
    """Return a client that tries nothing again."""
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0)


def asked(openai: Any, model: str) -> tuple[str, str]:  # noqa: ANN401 - overloads for each option
    """Return a model's answer at once, and the same one as a stream."""
    create = partial(
        openai.chat.completions.create,
        model=model,
        messages=[{"role": "user", "content": "What is 104 plus 104?"}],
        max_tokens=8,
        temperature=0,
    )
    answer, streamed = create(), create(stream=True)
    parts = [one.choices[0].delta.content or "" for one in streamed if one.choices]
    return answer.choices[0].message.content or "", "".join(parts)


def test_clients_are_answered_and_only_the_administrator_loads_adapters(tmp_path: Path) -> None:
    """The command that `serve` prints starts vLLM offline, on a base in a Hub cache.

    An adapter that the administrator loads directly is the clients' at once, through the proxy.
    """
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    cached(base, tmp_path / "huggingface")
    first, second = (adapter(base, tmp_path / name, seed) for seed, name in enumerate("ab"))
    hub = {"HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_OFFLINE": "1"}
    written = tmp_path / "vllm.command"
    with reserved_port() as port:
        options = ["--port", str(port), "--vllm", PROGRAM, "--vllm-args", " ".join(FOR_TESTS)]
        with written.open("w") as output:
            program = str(Path(sys.executable).with_name("adapterflow"))
            serve = [program, "serve", f"first={first}", "--print", *options]
            subprocess.run(serve, env={**os.environ, **hub}, stdout=output, check=True)
        assert f"serve {BASE} --revision {COMMIT}" in written.read_text()
        start = ["/bin/sh", str(START), str(written)]
        variables = {**hub, "VLLM_API_KEY": ADMINISTRATOR}
        with (
            running_vllm(start, port, tmp_path, variables),
            serving_proxy(tmp_path, f"127.0.0.1:{port}", ADMINISTRATOR, CLIENT) as public,
        ):
            clients, administrator = client(public, CLIENT), client(port, ADMINISTRATOR)
            assert {one.id for one in clients.models.list()} == {BASE, "first"}
            answer, streamed = asked(clients, "first")
            assert answer
            assert streamed == answer

            wanted = {"lora_name": "second", "lora_path": str(second)}
            for token in (CLIENT, ADMINISTRATOR):
                with pytest.raises(PermissionDeniedError):
                    client(public, token).post("/load_lora_adapter", body=wanted, cast_to=str)
            with pytest.raises(AuthenticationError):
                client(port, CLIENT).post("/load_lora_adapter", body=wanted, cast_to=str)
            assert {one.id for one in clients.models.list()} == {BASE, "first"}

            administrator.post("/load_lora_adapter", body=wanted, cast_to=str)
            answers = {model: asked(clients, model)[0] for model in (BASE, "first", "second")}
            assert len(set(answers.values())) == len(answers), "each computes something else"
            with pytest.raises(AuthenticationError):
                asked(client(public, ADMINISTRATOR), "second")
