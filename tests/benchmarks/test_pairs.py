"""Preferences beside TRL: the same tokens for all tools, and one judge of the loss."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.findings import BASE, Comparison, figures
from benchmarks.harness.judging import References, judge
from benchmarks.harness.messages import Candidate, JudgingRequest
from benchmarks.harness.pair_judging import log_probabilities, mean_pair_loss
from benchmarks.harness.rows import IGNORED, tokenized
from benchmarks.harness.side_by_side import able
from benchmarks.harness.workloads import DPO, PAIRS, WORKLOADS, expanded
from benchmarks.tools import COMPARED, DOCUMENTED_DPO, TOOLS
from tasks import engine
from tasks.config import BaseModelSettings, DataSettings, LearningObjective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHECKOUT = Path(__file__).parents[2]
NAMES = tuple(PAIRS)


def written(name: str, folder: Path, count: int) -> Path:
    """Write some rows of a workload to a file."""
    file = folder / "rows.jsonl"
    rows = PAIRS[name].rows(None, "train")[:count]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_of_pairs_are_those_that_ours_trains_on(
    name: str, tiny_base: Path, tokenizer: "PreTrainedTokenizerFast", tmp_path: Path
) -> None:
    """What is rendered for TRL and the judge has the product's tokens, to the last label."""
    file = written(name, tmp_path, 6)
    settings = DataSettings(train=str(file), eval_fraction=0, max_length=4096)
    base = BaseModelSettings(source=str(tiny_base))
    ours = engine.prepare_data(settings, base, 0, tmp_path / "tokens", LearningObjective.DPO)
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    theirs = [one for row in pairs for one in tokenized(row, tokenizer, 4096)]
    assert len(theirs) == 12
    for given, expected in zip(theirs, ours.train.rows, strict=True):
        end = len(given["labels"])
        assert given["input_ids"] == list(expected.input_ids[:end])
        assert given["labels"] == list(expected.labels[:end])
        assert set(expected.labels[end:]) <= {IGNORED}


def test_the_two_workloads_are_what_they_are_called(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """Reports have longer prompts than answers, conversations mostly shorter; equal each time."""
    shares = []
    for name in NAMES:
        workload = PAIRS[name]
        rows = workload.rows(None, "train")[:40]
        assert rows == workload.rows(None, "train")[:40]
        assert not any(row in workload.rows(None, "held-out") for row in rows)
        items = [one for row in rows for one in tokenized(row, tokenizer, 4096)]
        answers = [sum(label != IGNORED for label in one["labels"]) for one in items]
        prompts = [len(one["labels"]) - n for one, n in zip(items, answers, strict=True)]
        shares.append(sum(p > a for p, a in zip(prompts, answers, strict=True)) / len(items))
    assert shares[0] > 0.9
    assert shares[1] < 0.7


def test_only_tools_that_learn_from_pairs_are_compared_on_them() -> None:
    """A group stands for its workloads, and each of them has tools of its own."""
    assert expanded(["preferences", "demo"]) == [*NAMES, "demo"]
    for name in NAMES:
        assert able(COMPARED, name) == ["ours", "command", DOCUMENTED_DPO, "trl-dpo-tuned"]
    assert DOCUMENTED_DPO not in able(COMPARED, "demo")
    assert {one.objective for one in WORKLOADS.values()} == {"sft"}


def test_the_judge_of_pairs_computes_the_loss_of_dpo(tiny_base: Path, tmp_path: Path) -> None:
    """The base itself loses log 2; an adapter loses by its log-ratios to the base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = written(NAMES[1], tmp_path, 2)
    request = JudgingRequest(
        base=tiny_base,
        train=file,
        held_out=file,
        num_rows=2,
        max_length=1024,
        candidates=[],
        objective=DPO,
    )
    references: References = {}
    assert judge(request, Candidate(), references).held_out_loss == pytest.approx(math.log(2))

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    changed = get_peft_model(base, LoraConfig(r=4, lora_alpha=32, init_lora_weights=False)).eval()
    changed.save_pretrained(tmp_path / "adapter")
    given = judge(request, Candidate(adapter=tmp_path / "adapter"), references).held_out_loss
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    items = [one for row in rows for one in tokenized(row, tokenizer, 1024)]
    policy = log_probabilities(changed, items)
    with changed.disable_adapter():
        reference = log_probabilities(changed, items)
    ratios = [one - other for one, other in zip(policy, reference, strict=True)]
    margins = [0.1 * (ratios[at] - ratios[at + 1]) for at in (0, 2)]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 2
    assert given == pytest.approx(expected, rel=1e-4)
    assert given != pytest.approx(math.log(2), rel=1e-4)
    shifted = [one - 1 for one in policy]  # by as much for both answers of a pair
    assert mean_pair_loss(changed, shifted, items) == pytest.approx(math.log(2))


@pytest.mark.slow
def test_ours_and_trl_learn_from_pairs_as_much(tiny_base: Path, tmp_path: Path) -> None:
    """A quick comparison ends with each tool's pairs a second, memory and loss, by one judge."""
    tools = [name for name in ("ours", DOCUMENTED_DPO) if not TOOLS[name].why_not()]
    options = [f"--base={tiny_base}", "--dtype=float32", "--threads=1", "--steps=2", "--quick"]
    options += [f"--workload={NAMES[1]}", *(f"--tool={name}" for name in tools)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", *options, f"--output={tmp_path / 'out'}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = Comparison.model_validate_json((tmp_path / "out" / "results.json").read_text())
    (findings,) = found.findings
    assert not findings.failed
    assert findings.verdicts[BASE].held_out_loss == pytest.approx(math.log(2))
    losses = {tool: figures(findings, tool).train_loss.median for tool in findings.tools()}
    assert set(losses) == set(tools)
    assert all(loss < math.log(2) for loss in losses.values())
