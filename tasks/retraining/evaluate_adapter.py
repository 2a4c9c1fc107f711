"""After registering: score base, champion and challenger on the held-out rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.config import (
    DataSettings,
    EvaluationSettings,
    OlderRowsSettings,
    Task,
)
from tasks.durability.step import step
from tasks.engine.adapters import AdapterSet
from tasks.engine.scoring import (
    Evaluation,
    HeldOut,
    evaluate,
    open_held_out,
    open_older,
    reference_for_serving,
    write_scores,
)
from tasks.records import (
    BASE,
    CHALLENGER,
    CHAMPION,
    REFERENCE_FILE,
    CheckedRecord,
    EvaluatedRecord,
    RunRecord,
    SavedRecord,
    ScoredModel,
    VersionRecord,
)
from tasks.retraining import lineage
from tasks.retraining.loaded_models import load_models, weights_sha256
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker


@step
def evaluate_adapter(  # noqa: PLR0913 - challenger, champion, rows, and how
    saved: SavedRecord,
    version: VersionRecord,
    checked: CheckedRecord,
    settings: EvaluationSettings,
    older: OlderRowsSettings | None,
    data: DataSettings,
    run: RunRecord,
) -> EvaluatedRecord:
    """Score base, champion and challenger on the same rows, on one base in memory.

    The champion is scored again each time, as old scores may be of other rows or other code. On the
    older rows, champion and challenger are scored; without a champion there is nothing to forget.

    Raises:
        UserError: the rows have changed, a custom metric fails, or the champion is gone.
    """
    task = saved.base.settings.task
    held_out = open_held_out(settings, data, task)
    adapters = load_models(saved, checked.champion, run)
    sources = {BASE: saved.base.reference, CHALLENGER: version.uri}
    if checked.champion:
        sources[CHAMPION] = checked.champion.uri
    names = [name for name in (BASE, CHAMPION, CHALLENGER) if name in sources]
    guarded = open_older(older, settings, data, task) if older and checked.champion else None
    total = len(names) * len(held_out.examples) + 2 * len(guarded.examples if guarded else ())
    folder = run.folder / "evaluation"
    with progress("held-out answer") as shown:
        shown.at(0, total)

        def scored(names: Sequence[str], rows: HeldOut, file: str) -> EvaluatedRecord:
            found = _evaluated(adapters, names, rows, lambda count: shown.add(count, total))
            if rows is held_out and adapters.base.settings.task is Task.CAUSAL_LM:
                _keep_reference(adapters, rows, found, folder)
            return _record(found, sources, adapters, rows, folder / file)

        record = scored(names, held_out, "rows.jsonl")
        if guarded:
            of_older = scored((CHAMPION, CHALLENGER), guarded, "older_rows.jsonl")
            record = record.model_copy(update={"older": of_older})
    warnings = _warnings(adapters, saved, checked.champion)
    record = record.model_copy(update={"warnings": warnings})
    tracker = Tracker(run)
    _report(record, tracker)
    if (reference := folder / REFERENCE_FILE).is_file():
        tracker.log_file(reference)
    return record


def _evaluated(
    adapters: AdapterSet,
    names: Sequence[str],
    held_out: HeldOut,
    on_progress: Callable[[int], None],
) -> dict[str, Evaluation]:
    """Score models on rows; the base is asked as the challenger is."""
    return {
        name: evaluate(
            adapters,
            None if name == BASE else name,
            CHALLENGER if name == BASE else name,
            held_out,
            on_progress,
        )
        for name in names
    }


def _keep_reference(
    adapters: AdapterSet, held_out: HeldOut, found: Mapping[str, Evaluation], folder: Path
) -> None:
    """Keep what a server has to reproduce of the challenger, for `adapterflow publish`."""
    reference = reference_for_serving(
        adapters, CHALLENGER, held_out, found[BASE].scores, found[CHALLENGER].scores
    )
    write_atomically(folder / REFERENCE_FILE, reference.model_dump_json())


def _record(
    found: Mapping[str, Evaluation],
    sources: Mapping[str, str],
    adapters: AdapterSet,
    held_out: HeldOut,
    file: Path,
) -> EvaluatedRecord:
    """Write the scores of all rows to a file, and return their record."""
    scores = {name: one.scores for name, one in found.items()}
    return EvaluatedRecord(
        rows=write_scores(held_out, scores, file),
        num_rows=len(held_out.examples),
        answers=held_out.kind,
        models=tuple(
            _scored(name, sources[name], one, adapters, held_out) for name, one in found.items()
        ),
    )


def _warnings(
    adapters: AdapterSet, saved: SavedRecord, champion: VersionRecord | None
) -> tuple[str, ...]:
    unchecked = [text for one in adapters.adapters.values() for text in one.warnings]
    otherwise = lineage.loaded_otherwise(champion, saved.base) if champion else None
    return (*unchecked, *([otherwise] if otherwise else []))


def _scored(
    name: str, source: str, found: Evaluation, adapters: AdapterSet, held_out: HeldOut
) -> ScoredModel:
    return ScoredModel(
        name=name,
        source=source,
        weights_sha256=weights_sha256(adapters, name),
        scores=found.scores.all(),
        rows_per_second=len(held_out.examples) / found.seconds_answering,
    )


def _report(record: EvaluatedRecord, tracker: Tracker) -> None:
    for warning in record.warnings:
        logger().warning(warning)
    _report_scores(record, tracker)
    if record.older:
        _report_scores(record.older, tracker, "older ")


def _report_scores(record: EvaluatedRecord, tracker: Tracker, which: str = "") -> None:
    prefix = f"evaluation/{which.strip()}{'_' if which else ''}"
    for model in record.models:
        metrics = {**model.scores, "rows_per_second": model.rows_per_second}
        tracker.log_numbers({f"{prefix}{model.name}_{k}": v for k, v in metrics.items()})
        logger().info(
            "%s on %d %srows at %.1f rows/s: %s",
            model.name,
            record.num_rows,
            which,
            model.rows_per_second,
            ", ".join(f"{key} {value:.4g}" for key, value in model.scores.items()),
        )
    tracker.log_file(record.rows.path, "evaluation")
