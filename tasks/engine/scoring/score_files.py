"""Write and read each model's answers and scores, as JSON Lines with one row per line."""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.config import AnswerKind
from tasks.engine.scoring.held_out import HeldOut
from tasks.engine.scoring.model_scores import ModelScores, RowScores
from tasks.records import FileRecord
from tasks.runtime.atomic_files import write_atomically


def write_scores(held_out: HeldOut, scores: Mapping[str, ModelScores], file: Path) -> FileRecord:
    """Write the models' scores by name, atomically, and return the file's record."""
    lines = []
    for index, example in enumerate(held_out.examples):
        line = {
            "row": example.row,
            "prompt": example.question,
            "expected": example.answer,
            "models": {name: one.rows[index].model_dump() for name, one in scores.items()},
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(file, "".join(lines))
    return FileRecord.of(file)


def read_scores(file: Path, kind: AnswerKind) -> tuple[list[str], dict[str, ModelScores]]:
    """Return the prompts, and the scores of each model by name."""
    # Not splitlines(), which also splits at U+2028 and the like, unescaped within JSON strings.
    text = file.read_text(encoding="utf-8").removesuffix("\n")
    lines = [json.loads(line) for line in text.split("\n")]
    expected = [line["expected"] for line in lines]
    scores = {
        name: ModelScores(
            kind, expected, [RowScores.model_validate(line["models"][name]) for line in lines]
        )
        for name in lines[0]["models"]
    }
    return [line["prompt"] for line in lines], scores
