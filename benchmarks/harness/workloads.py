"""The workloads. A new one is an entry in `WORKLOADS`, or in `PAIRS` where pairs are learned from.

Rows are chat messages, the last of which is the answer to learn; pairs have a prompt and two
answers.
"""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import pair_rows
from benchmarks.harness.long_rows import long_rows

Row = dict[str, list[dict[str, str]]]
SFT, DPO = "sft", "dpo"
"""What a workload's rows are for, by the names of `training.objective`."""

_DEMO = Path(__file__).resolve().parents[2] / "deployments" / "demo"
_SORTING = "You sort the messages of a bank's customers. Answer with the name of the intent."


@dataclass(frozen=True)
class Workload:
    """Rows and the settings to train on them with."""

    title: str
    rows: Callable[[Path | None, str], list[Row]]
    """Of the folder that was given for it, if any, and `train` or `held-out`."""
    batch_size: int
    num_steps: int
    max_length: int
    learning_rate: float
    needs_folder: bool = False
    """Whether its data must be supplied by the user."""
    tools: tuple[str, ...] = ()
    """Tools compared on this workload in addition to the default ones."""
    objective: str = SFT


def _banking77(folder: Path | None, split: str) -> list[Row]:
    assert folder is not None  # noqa: S101 - a workload that needs a folder is skipped without
    file = folder / ("train.csv" if split == "train" else "test.csv")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    random.Random(0).shuffle(rows)  # noqa: S311 - the files are sorted by category
    return [chat(_SORTING, row["text"], row["category"]) for row in rows]


def _demo(_: Path | None, split: str) -> list[Row]:
    file = _DEMO / ("train.jsonl" if split == "train" else "eval.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _long(_: Path | None, split: str) -> list[Row]:
    seed, count = (0, 1024) if split == "train" else (1, 128)
    return [chat("", prompt, answer) for prompt, answer in long_rows(count, seed)]


def _reports(_: Path | None, split: str) -> list[Row]:
    seed, count = (2, 512) if split == "train" else (3, 128)
    return list(pair_rows.reports(count, seed))


def _conversations(_: Path | None, split: str) -> list[Row]:
    seed, count = (4, 512) if split == "train" else (6, 128)
    return list(pair_rows.conversations(count, seed))


def chat(system: str, user: str, assistant: str) -> Row:
    """Return a chat row: a question and its answer, after a system message unless it is empty."""
    opening = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": opening + turns}


WORKLOADS = {
    "banking77": Workload(
        "Banking77: short rows under one template",
        _banking77,
        batch_size=16,
        num_steps=30,
        max_length=256,
        learning_rate=1e-3,
        needs_folder=True,
    ),
    "long": Workload(
        "Long: varied rows of about 250 tokens",
        _long,
        batch_size=8,
        num_steps=12,
        max_length=512,
        learning_rate=5e-4,
        tools=("ours-saving",),
    ),
    "demo": Workload(
        "Demo: messages to JSON tickets",
        _demo,
        batch_size=16,
        num_steps=12,
        max_length=512,
        learning_rate=1e-3,
    ),
}

PAIRS = {
    "preferences-reports": Workload(
        "Preferences: pairs whose prompt is longer than their answers",
        _reports,
        batch_size=4,
        num_steps=6,
        max_length=1024,
        learning_rate=2e-4,
        objective=DPO,
    ),
    "preferences-conversations": Workload(
        "Preferences: pairs of free conversations",
        _conversations,
        batch_size=4,
        num_steps=6,
        max_length=1024,
        learning_rate=2e-4,
        objective=DPO,
    ),
}
COMPARED: dict[str, Workload] = {**WORKLOADS, **PAIRS}
"""The workloads of `benchmarks.compare`; the other programs learn from single answers."""
GROUPS = {"preferences": tuple(PAIRS)}
"""Names for several workloads."""


def expanded(names: Sequence[str]) -> list[str]:
    """Return the names of workloads, with those of a group in its place."""
    return [one for name in names for one in GROUPS.get(name, (name,))]
