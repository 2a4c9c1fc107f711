"""After registering: score base, champion and challenger on the held-out rows."""

from tasks.config import AdapterSettings, DataSettings, EvaluationSettings
from tasks.durability.step import step
from tasks.engine.adapters import AdapterSet
from tasks.engine.base import load_base, tokenizer_of
from tasks.engine.scoring import Evaluation, HeldOut, evaluate, open_held_out, write_scores
from tasks.inference.adapters_on_base import found_adapters
from tasks.records import (
    BASE,
    CHALLENGER,
    CHAMPION,
    CheckedRecord,
    EvaluatedRecord,
    RunRecord,
    SavedRecord,
    ScoredModel,
    VersionRecord,
)
from tasks.retraining import lineage
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker


@step
def evaluate_adapter(  # noqa: PLR0913 - challenger, champion, rows, and how
    saved: SavedRecord,
    version: VersionRecord,
    checked: CheckedRecord,
    settings: EvaluationSettings,
    data: DataSettings,
    run: RunRecord,
) -> EvaluatedRecord:
    """Score base, champion and challenger on the same rows, on one base in memory.

    The champion is scored again each time, as old scores may be of other rows or other code.

    Raises:
        UserError: the rows have changed, a custom metric fails, or the champion is gone.
    """
    held_out = open_held_out(settings, data, saved.base.settings.task)
    adapters = _loaded(saved, checked.champion, run)
    sources = {BASE: saved.base.reference, CHALLENGER: version.uri}
    if checked.champion:
        sources[CHAMPION] = checked.champion.uri
    names = [name for name in (BASE, CHAMPION, CHALLENGER) if name in sources]
    found: dict[str, Evaluation] = {}
    with progress("held-out answer") as shown:
        shown.at(0, len(names) * len(held_out.examples))
        for name in names:
            found[name] = evaluate(
                adapters,
                None if name == BASE else name,
                CHALLENGER if name == BASE else name,
                held_out,
                lambda count: shown.add(count, len(names) * len(held_out.examples)),
            )
    scores = {name: one.scores for name, one in found.items()}
    record = EvaluatedRecord(
        rows=write_scores(held_out, scores, run.folder / "evaluation" / "rows.jsonl"),
        num_rows=len(held_out.examples),
        answers=held_out.kind,
        models=tuple(
            _scored(name, sources[name], found[name], adapters, held_out) for name in names
        ),
        warnings=_warnings(adapters, saved, checked.champion),
    )
    _report(record, Tracker(run))
    return record


def _loaded(saved: SavedRecord, champion: VersionRecord | None, run: RunRecord) -> AdapterSet:
    tokenizer = tokenizer_of(saved.base)
    adapters = AdapterSet(load_base(saved.base), tokenizer, saved.base)
    adapters.load(saved.folder, CHALLENGER)
    if champion:
        wanted = AdapterSettings(source=champion.uri, name=CHAMPION)
        with found_adapters([wanted], run.tracking_uri) as (folder,):
            adapters.load(folder, CHAMPION)
    return adapters


def _warnings(
    adapters: AdapterSet, saved: SavedRecord, champion: VersionRecord | None
) -> tuple[str, ...]:
    unchecked = [text for one in adapters.adapters.values() for text in one.warnings]
    otherwise = lineage.loaded_otherwise(champion, saved.base) if champion else None
    return (*unchecked, *([otherwise] if otherwise else []))


def _scored(
    name: str, source: str, found: Evaluation, adapters: AdapterSet, held_out: HeldOut
) -> ScoredModel:
    is_base = name == BASE
    return ScoredModel(
        name=name,
        source=source,
        weights_sha256=adapters.base.fingerprint if is_base else adapters.adapters[name].sha256,
        scores=found.scores.all(),
        rows_per_second=len(held_out.examples) / found.seconds_answering,
    )


def _report(record: EvaluatedRecord, tracker: Tracker) -> None:
    for warning in record.warnings:
        logger().warning(warning)
    for model in record.models:
        metrics = {**model.scores, "rows_per_second": model.rows_per_second}
        tracker.log_numbers({f"evaluation/{model.name}_{k}": v for k, v in metrics.items()})
        logger().info(
            "%s on %d rows at %.1f rows/s: %s",
            model.name,
            record.num_rows,
            model.rows_per_second,
            ", ".join(f"{key} {value:.4g}" for key, value in model.scores.items()),
        )
    tracker.log_file(record.rows.path, "evaluation")
