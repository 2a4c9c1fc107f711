"""Versions published to a real vLLM server, under load."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from openai import OpenAI
from retraining_runs import retrained, retraining, rows_of
from tiny_models import tiny_llama
from vllm_process import FOR_TESTS, PROGRAM, needs_vllm, reserved_port, running_vllm

from tasks.config import ServingSettings, TrackingSettings
from tasks.errors import PassingError
from tasks.records import ServingOutcome, VersionRecord
from tasks.serving.publishing import publish
from tasks.serving.vllm_command import ENVIRONMENT, VllmServer, vllm_command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), needs_vllm]

TRACKING = TrackingSettings()
_SECONDS_OF_LOAD = 60
_SECONDS_TO_ANSWER = 300
"""At most, of a machine that is busy with other things."""


def trained(base: Path, folder: Path, name: str, numbers: range) -> VersionRecord:
    """Retrain on sums of these numbers, and return the version that was made."""
    folder.mkdir(exist_ok=True)
    rows = rows_of(folder / f"{numbers.stop}.jsonl", numbers)
    config = retraining(
        base,
        folder,
        name,
        data={"train": str(rows)},
        training={"num_train_epochs": 6},
        evaluation={"max_new_tokens": 8},
    )
    record = retrained(config)
    assert record.version
    return record.version


@contextmanager
def serving(version: VersionRecord, base: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Start the server that `adapterflow serve` starts; yield its address and process id."""
    with reserved_port() as port:
        server = VllmServer("127.0.0.1", port, PROGRAM, FOR_TESTS)
        command = vllm_command([version.uri], server, ServingSettings(), TRACKING, str(base))
        with running_vllm(command, port, folder, ENVIRONMENT) as process:
            yield f"http://127.0.0.1:{port}", process.pid


class Load:
    """Two requests a second of eight tokens, to the version that clients were given last."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        self.answers: set[tuple[str, str]] = set()
        self.failed: list[Exception] = []
        self._client = OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            # The server closes a connection that was idle for five seconds. On a busy machine that
            # may be while a request is on its way, which this client would not try again.
            default_headers={"Connection": "close"},
        )
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End with the request in flight."""
        self._end.set()
        self._thread.join()

    def wait_for(self, model: str) -> None:
        """Wait until a model has answered, however busy the machine is."""
        end = time.monotonic() + _SECONDS_TO_ANSWER
        while time.monotonic() < end and not self.failed:
            if model in {name for name, _ in tuple(self.answers)}:
                return
            time.sleep(0.5)
        raise AssertionError(f"no answer by {model}: {self.failed}")

    def asked(self, model: str) -> str:
        """Return a model's answer."""
        answer = self._client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 104 plus 104?"}],
            max_tokens=8,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    def _run(self) -> None:
        while not self._end.wait(0.5):
            model = self.model
            try:
                self.answers.add((model, self.asked(model)))
            except Exception as error:  # noqa: BLE001 - what a client would see
                self.failed.append(error)


def test_a_version_is_proven_on_a_real_server_and_the_next_one_beside_it(tmp_path: Path) -> None:
    """Under load no request fails, and each is answered by the version that it names.

    An adapter of another base is found before it is loaded, and a server that is gone is an outage.
    """
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    first = trained(base, tmp_path / "first", "sums", range(24))
    second = trained(base, tmp_path / "second", "sums", range(20, 60))
    other_base = tiny_llama(tmp_path / "other", hidden_size=128, seed=7)
    other = trained(other_base, tmp_path / "third", "others", range(24))
    with serving(first, base, tmp_path) as (url, process):
        settings = ServingSettings(url=url)
        record = publish(first.uri, settings, TRACKING)
        assert record.outcome is ServingOutcome.PUBLISHED, record.reason
        assert record.server.startswith("0."), record.server

        with Load(url, record.served_as) as load:
            time.sleep(_SECONDS_OF_LOAD / 2)
            load.wait_for(record.served_as)
            new = publish(second.uri, settings, TRACKING)
            assert new.outcome is ServingOutcome.PUBLISHED, new.reason
            load.model = new.served_as
            time.sleep(_SECONDS_OF_LOAD / 2)
            load.wait_for(new.served_as)
        assert not load.failed
        expected = {(name, load.asked(name)) for name in (record.served_as, new.served_as)}
        assert load.answers == expected
        assert len({answer for _, answer in expected}) == 2

        wrong = publish(other.uri, settings, TRACKING)
        assert wrong.outcome is ServingOutcome.WRONG_BASE, wrong.reason
        os.kill(process, signal.SIGKILL)
        with pytest.raises(PassingError, match="can't be reached"):
            publish(second.uri, settings, TRACKING)
