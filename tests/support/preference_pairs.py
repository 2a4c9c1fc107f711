"""Pairs of answers for tests: as rows of a file, as tokens, and as TRL has them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine_steps import WORDS, injected

from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    LearningObjective,
    LoraSettings,
    TrainingSettings,
)
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.records import BaseModelRecord, TrainedRecord

if TYPE_CHECKING:
    from tasks.engine.training.callbacks import OnTraining

ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"The {one} is",
        "chosen": f" {one}" * (number % 3 + 1),
        "rejected": f" not {one} but {other}" * (number % 2 + 1),
    }
    for number, (one, other) in enumerate(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
]


JUDGED: list[dict[str, Any]] = [
    {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
    for row in ROWS[:5]
    for answer in ("chosen", "rejected")
]


def draw_pairs(
    *sizes: tuple[int, int, int], seed: int = 0, num_tokens: int = 400
) -> list[TokenizedRow]:
    """Draw the rows of pairs, of random tokens.

    Args:
        sizes: of each pair, the tokens of its prompt, its chosen and its rejected answer.
        seed: of the tokens.
        num_tokens: of the vocabulary.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number, (asked, *answered) in enumerate(sizes):
        prompt = random.integers(5, num_tokens, asked).tolist()
        for count in answered:
            answer = random.integers(5, num_tokens, count).tolist()
            rows.append(TokenizedRow(prompt + answer, [IGNORED] * asked + answer, number))
    return rows


def for_trl(rows: Sequence[TokenizedRow]) -> list[dict[str, list[int]]]:
    """Return the rows of pairs as TRL's collator takes them."""
    found = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        start = next(at for at, label in enumerate(chosen.labels) if label != IGNORED)
        found.append(
            {
                "prompt_ids": chosen.input_ids[:start],
                "chosen_ids": chosen.input_ids[start:],
                "rejected_ids": rejected.input_ids[start:],
            }
        )
    return found


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows to a JSONL file; return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def prepared_pairs(
    base: BaseModelSettings,
    folder: Path,
    num_eval_rows: int = 4,
    objective: LearningObjective = LearningObjective.DPO,
    **changes: object,
) -> PreparedData:
    """Prepare the pairs, or judged answers, for a base; the last ones are held out."""
    rows = JUDGED if objective is LearningObjective.KTO else ROWS
    split = len(rows) - num_eval_rows
    settings = {
        "train": write_rows(folder / "train.jsonl", rows[:split]),
        "eval": write_rows(folder / "eval.jsonl", rows[split:]) if num_eval_rows else None,
        "eval_fraction": 0,
        "template": "plain",
    }
    data = DataSettings.model_validate(settings | changes)
    return engine.prepare_data(data, base, 0, folder / "tokens", objective)


def preferring(**changes: object) -> TrainingSettings:
    """Return settings for a short run on preferences, at a high learning rate."""
    short = {"batch_size": 2, "max_steps": 4, "learning_rate": 0.02, "eval_steps": 2}
    return TrainingSettings.model_validate(short | {"objective": "dpo"} | changes)


def train_on_pairs(  # noqa: PLR0913 - a training run has this many inputs
    base: Path,
    folder: Path,
    settings: TrainingSettings | None = None,
    lora: LoraSettings | None = None,
    on_progress: "OnTraining | None" = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainedRecord:
    """Steps 1 to 4 on the pairs, on from a checkpoint in the folder, if any."""
    settings = settings or preferring()
    model, record = injected(base, folder, lora)
    data = data_of(record.lora.base, folder, settings.objective)
    checkpoints = folder / "checkpoints"
    return engine.train_adapter(
        model,
        record,
        data.record,
        settings,
        checkpoints,
        on_progress,
        should_stop=should_stop,
    )


def data_of(
    base: BaseModelRecord, folder: Path, objective: LearningObjective = LearningObjective.DPO
) -> PreparedData:
    """Prepare the pairs, or judged answers, for a base that is loaded."""
    return prepared_pairs(base.settings, folder, objective=objective)
