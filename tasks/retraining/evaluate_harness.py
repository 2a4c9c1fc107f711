"""After the evaluation, if configured: score all models on tasks of lm-evaluation-harness."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from tasks.config import HarnessSettings
from tasks.durability.step import step
from tasks.engine.adapters import AdapterSet
from tasks.engine.scoring import HarnessTasks, harness_sha256, open_tasks, score_on_harness
from tasks.records import (
    BASE,
    CHALLENGER,
    CHAMPION,
    CheckedRecord,
    HarnessModel,
    HarnessRecord,
    RunRecord,
    SavedRecord,
)
from tasks.retraining.loaded_models import load_models, weights_sha256
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.progress import logger
from tasks.tracking import Tracker


@step
def evaluate_harness(
    saved: SavedRecord, checked: CheckedRecord, settings: HarnessSettings, run: RunRecord
) -> HarnessRecord:
    """Score base, champion and challenger on the same tasks, on one base in memory.

    A model's scores are kept as soon as it has them: after a kill, those of the others are missing.

    Raises:
        UserError: a task is gone or fails, or the champion is gone.
        PassingError: a task needs the network, which is away.
    """
    opened = open_tasks(settings)
    adapters = load_models(saved, checked.champion, run)
    names = [
        name for name in (BASE, CHAMPION, CHALLENGER) if name == BASE or name in adapters.adapters
    ]
    folder = run.folder / "evaluation" / "harness"
    record = HarnessRecord(
        lm_eval_version=version("lm_eval"),
        limit=settings.limit,
        models=tuple(_kept(adapters, name, opened, folder) for name in names),
        shown=(),
    )
    record = record.model_copy(update={"shown": _shown(record.models[0], opened)})
    _report(record, run)
    return record


def _kept(adapters: AdapterSet, name: str, opened: HarnessTasks, folder: Path) -> HarnessModel:
    """Return a model's scores from their file; score it and write the file if there is none."""
    file = folder / f"{name}.json"
    prompted_as = CHALLENGER if name == BASE else name
    made_from = _made_from(adapters, name, prompted_as, opened)
    if (kept := _read(file)) and kept.made_from == made_from:
        logger().info("%s was scored on the harness's tasks before this attempt", name)
        return kept
    model = score_on_harness(adapters, name, prompted_as, opened, made_from)
    write_atomically(file, model.model_dump_json(indent=1))
    return model


def _made_from(adapters: AdapterSet, name: str, prompted_as: str, opened: HarnessTasks) -> str:
    weights = [weights_sha256(adapters, one) for one in (name, prompted_as)]
    parts = [*weights, adapters.base.dtype, harness_sha256(opened.settings), opened.rows_sha256()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path) -> HarnessModel | None:
    try:
        return HarnessModel.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # none, or of another version of this code
        return None


def _shown(model: HarnessModel, opened: HarnessTasks) -> tuple[str, ...]:
    """Return what reports name: what is configured; of a group without scores, its members."""
    scored = list(dict.fromkeys(score.task for score in model.scores))
    shown: list[str] = []
    for name in opened.settings.tasks:
        shown += (
            [name] if name in scored else [one for one in opened.members[name] if one in scored]
        )
    return tuple(dict.fromkeys(shown))


def _report(record: HarnessRecord, run: RunRecord) -> None:
    tracker = Tracker(run)
    numbers: dict[str, float] = {}
    for model in record.models:
        numbers[f"harness/{model.name}/seconds"] = model.seconds
        for score in model.scores:
            if score.task not in record.shown:
                continue
            name = f"harness/{model.name}/{score.name}"
            numbers[name] = score.value
            if score.stderr is not None:
                numbers[f"{name}_stderr"] = score.stderr
        shown = record.shown_scores(model.name)
        logger().info(
            "%s on lm-evaluation-harness %s in %.0f s: %s",
            model.name,
            record.lm_eval_version,
            model.seconds,
            ", ".join(f"{name} {value:.4g}" for name, value in shown.items()),
        )
    for warning in dict.fromkeys(one for model in record.models for one in model.warnings):
        logger().warning("lm-evaluation-harness: %s", warning)
    tracker.log_numbers(numbers)
    tracker.log_text(record.model_dump_json(indent=1), "evaluation/harness.json")
