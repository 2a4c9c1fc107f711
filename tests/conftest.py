"""What all tests share: a home of their own, no way to the real Hub, a server, a tiny model."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# huggingface_hub and datasets read it when they are imported, and test modules import them. A test
# that wants a Hub points the clients at the stand-in.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are done sooner by one thread than two threads agree on who does what.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The only call that a test's Prefect server would make to the outside.
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
# A shell's background job ignores Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import ray_cluster  # noqa: F401 - variables that Ray reads when it is imported, by whichever test
from session_server import SessionServer, used_server
from tiny_models import tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SHARED_SERVER = pytest.StashKey[SessionServer]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the Prefect server of all workers in the process that controls them, if any."""
    if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        config.stash[SHARED_SERVER] = SessionServer()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - a worker, as pytest-xdist sees it
    """Pass a worker the address of the shared Prefect server."""
    node.workerinput["prefect_api_url"] = node.config.stash[SHARED_SERVER].api_url


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared Prefect server, once every worker is gone."""
    if server := config.stash.get(SHARED_SERVER, None):
        server.stop()


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the checkout clean: what the pipeline writes goes to a folder of this process.

    Each worker counts as a device of its own, so runs of two workers do not wait for each other.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        if worker := os.environ.get("PYTEST_XDIST_WORKER"):
            patch.setenv("ADAPTERFLOW_DEVICE", f"test:{worker}")
        yield


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> None:
    """Exempt what is imported from garbage collection, which each load and training ask for.

    With torch, transformers and MLflow imported, a collection takes longer than a tiny training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """Undo what a command set for its process: variables, and the settings that threads see."""
    variables, settings = _server_variables(), _settings_of_threads()
    yield
    for name in _server_variables():
        del os.environ[name]
    os.environ.update(variables)
    if settings is not _settings_of_threads():
        import prefect.context

        if settings is None:  # the test imported Prefect
            prefect.context.refresh_global_settings_context()
        else:
            prefect.context.GLOBAL_SETTINGS_CONTEXT = settings


def _server_variables() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PREFECT_", "MLFLOW_"))
    }


def _settings_of_threads() -> Any:  # noqa: ANN401 - Prefect may not be imported
    """Return Prefect's settings of this process; None while Prefect is not imported."""
    return getattr(sys.modules.get("prefect.context"), "GLOBAL_SETTINGS_CONTEXT", None)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama with a chat template; tests must not write to it."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def prefect_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Use a real Prefect server: the one of all workers, or else one of this process's own."""
    shared: str | None = getattr(request.config, "workerinput", {}).get("prefect_api_url")
    own = None if shared else SessionServer()
    api_url = own.api_url if own else str(shared)
    try:
        with used_server(api_url, tmp_path_factory.mktemp("results")):
            yield
    finally:
        if own:
            own.stop()


@pytest.fixture
def tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer with a chat template, which the test may change."""
    return tiny_tokenizer()
