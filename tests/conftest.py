"""What all tests share: a home of their own, no way to the real Hub, and one tiny base model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# huggingface_hub and datasets read it when they are imported, and test modules import them. A test
# that wants a Hub points the clients at the stand-in.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are done sooner by one thread than two threads agree on who does what.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The only call that a test's Prefect server would make to the outside.
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"

import pytest
from tiny_models import tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the checkout clean: what the pipeline writes goes to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny Llama with a chat template; tests must not write to it."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a real Prefect server on a database of this session's own."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}),
    ):
        yield


@pytest.fixture
def tokenizer() -> "PreTrainedTokenizerFast":
    """Make a tokenizer with a chat template, which the test may change."""
    return tiny_tokenizer()
