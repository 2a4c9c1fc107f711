"""The comparison with other tools: the same tokens for all, whole results, equal losses."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_models import tiny_bert

from benchmarks.harness.findings import BASE, Comparison, Findings, figures
from benchmarks.harness.messages import Outcome
from benchmarks.harness.rows import IGNORED, tokens_and_labels
from benchmarks.harness.watching import counted
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.retraining import Loop
from benchmarks.tools import DOCUMENTED, TOOLS
from tasks.config import BaseModelSettings, DataSettings, TrackingSettings
from tasks.engine.base.sources import find_base
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.preparation import prepare_data
from tasks.retraining import lineage
from tasks.tracking import Registry, ready_client, tracking_uri

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Findings]:
    """Compare tools on a tiny model, TRL where it is installed, as `make bench` would."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    wanted = ("ours", "command", "trainer", DOCUMENTED)
    tools = [f"--tool={name}" for name in wanted if not TOOLS[name].why_not()]
    options = [f"--base={tiny_base}", "--dtype=float32", "--threads=1", f"--output={folder}"]
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--steps=8"]
    done = subprocess.run(
        [*command, *options, *tools], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    comparison = Comparison.model_validate_json((folder / "results.json").read_text())
    assert (folder / "results.png").stat().st_size > 0
    return comparison, comparison.findings[0]


@pytest.mark.parametrize("workload", ["demo", "long"])
def test_all_tools_train_on_the_tokens_that_ours_trains_on(
    workload: str, tiny_base: Path, tokenizer: "PreTrainedTokenizerFast", tmp_path: Path
) -> None:
    """What is rendered for the others has the product's tokens and labels, to the last label."""
    rows = WORKLOADS[workload].rows(None, "train")[:20]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(train=str(file), eval_fraction=0, max_length=2048)
    source = find_base(BaseModelSettings(source=str(tiny_base)))
    ours = prepare_data(read_examples(settings, 0), settings, 0, source, tmp_path / "tokens")
    for row, expected in zip(rows, ours.train.rows, strict=True):
        given = tokens_and_labels(row, tokenizer, 2048)
        end = len(given["labels"])
        assert (given["input_ids"], given["labels"]) == (
            expected.input_ids[:end],
            expected.labels[:end],
        )
        assert set(expected.labels[end:]) <= {IGNORED}


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_workloads_rows_are_always_the_same(split: str) -> None:
    """Rows that are made up by code come out equal each time, and the splits share none."""
    long = WORKLOADS["long"]
    other = {"train": "held-out", "held-out": "train"}[split]
    assert long.rows(None, split) == long.rows(None, split)
    assert not any(row in long.rows(None, other) for row in long.rows(None, split)[:50])


def test_the_count_is_that_of_the_products() -> None:
    """Forward and backward through two layers and an attention count as their definition says."""

    class Attending(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(8, 16)
            self.layer = torch.nn.Linear(16, 16, bias=False)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embeddings

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.embeddings(ids))[:, None]
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    outcome = Outcome()
    model = Attending()
    with counted(model, outcome):
        model(torch.arange(8)[None]).sum().backward()
    assert outcome.work is not None
    assert outcome.work.num_tokens == 8
    # One product of 8 x 16 x 16 and two for its gradients; 2 of 8 x 8 x 16 and 5 in the backward.
    assert outcome.work.flops == 2 * (3 * 8 * 16 * 16 + 7 * 8 * 8 * 16)


@pytest.mark.slow
def test_every_tool_gives_every_figure(demo: tuple[Comparison, Findings]) -> None:
    """A quick comparison ends with speed, memory, times, losses and the work of each tool."""
    comparison, findings = demo
    assert not findings.failed
    assert {"ours", "command", "trainer"} <= set(findings.tools())
    for tool in findings.tools():
        found = figures(findings, tool)
        assert min(found.rows_per_second.least, found.peak_memory_mb.least) > 0
        assert 0 < found.seconds_to_first_step.least < found.seconds_to_adapter.least
        assert (found.computed is None) == (tool == "command")
        assert found.computed is None or 0 < found.computed.share < 1
    assert comparison.machine.versions["torch"] == torch.__version__


@pytest.mark.slow
def test_equal_work_ends_at_equal_loss(demo: tuple[Comparison, Findings]) -> None:
    """Rows in another order and another start apart, all tools learn as much from the same rows."""
    _, findings = demo
    before = findings.verdicts[BASE].held_out_loss
    losses = {tool: figures(findings, tool).held_out_loss.median for tool in findings.tools()}
    learned = before - losses["trainer"]
    assert learned > 0.2
    for loss in losses.values():
        assert loss == pytest.approx(losses["trainer"], abs=0.1 * learned)


@pytest.mark.slow
def test_a_classifier_is_trained_all_three_ways(tmp_path: Path) -> None:
    """The comparison of classifiers runs to its table, on a tiny encoder and a few rows."""
    lines = "".join(f"{start} the {word},{word}\n" for start in "abcd" for word in ("fox", "card"))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,category\n{lines}")
    base = tiny_bert(tmp_path / "base")
    options = [f"--banking77={tmp_path}", f"--base={base}", f"--folder={tmp_path / 'results'}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.classification", "--epochs=2", "--threads=1", *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line.split("|")[1].strip()
        for line in done.stdout.splitlines()
        if line.startswith("|") and "%" in line
    ]
    assert rows[:2] == ["untrained head", "adapter and head (adapterflow)"]
    assert "8 training rows, 2 epochs" in done.stdout


@pytest.mark.parametrize(("recorded", "said"), [("is", "the same"), ("was", "OTHER")])
def test_a_rollback_is_proven_by_the_weights_that_are_got(
    recorded: str, said: str, tmp_path: Path
) -> None:
    """What MLflow gives as champion is hashed, and compared with what was once registered."""
    uri = tracking_uri(TrackingSettings())
    client, experiment = ready_client(uri, "benchmark")
    registry = Registry(uri, f"rolled-back-{recorded}")
    for number, weights in enumerate((b"is", b"after")):
        model = client.create_logged_model(experiment, name="adapter")
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        digest = hashlib.sha256(recorded.encode()).hexdigest()
        registry.register(f"models:/{model.model_id}", None, {lineage.ADAPTER: digest})
        registry.promote(number + 1, number or None)
    told = Loop(registry.name, "base", 1, []).roll_back()
    digest = hashlib.sha256(b"is").hexdigest()
    assert told == f"rolled back from version 2 to version 1: {said} weights, {digest[:12]}"


@pytest.mark.slow
def test_the_loop_of_retrainings_is_told_row_by_row(tiny_base: Path, tmp_path: Path) -> None:
    """Two waves, the same again, and shuffled labels each end in a line of the table."""
    sums = {f"What is {a} plus {b}?": str(a + b) for a in range(4) for b in range(60)}
    lines = [f"{asked},{answer}" for asked, answer in sums.items()]
    for name, part in (("train", lines[::2]), ("test", lines[1::2])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,category", *part]))
    options = [f"--banking77={tmp_path}", f"--base={tiny_base}", "--intents=40", "--first=24"]
    options += ["--second=24", "--held-out=50", "--epochs=1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retraining", *options],
        cwd=CHECKOUT,
        env={**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == [
        "first wave",
        "both waves",
        "both waves again",
        "shuffled labels",
    ]
    assert [row[1] for row in rows[1:]] == ["24", "48", "48", "48"]
    assert "skipped" in rows[3][-1]
    kept = next((tmp_path / "home/outputs").glob("banking77-*/decisions.md"))
    assert kept.read_text().strip() in done.stdout
