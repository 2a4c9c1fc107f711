"""Remove files of earlier runs that are no longer needed.

Checkpoints of a finished run are useless, as a redo trains from step 0. An interrupted run is
resumed from its checkpoints, which are kept for `keep_checkpoints_days`. So are the tokenized rows
of any run, as a redo trains on them. A finished run's folder contains its adapter and is kept,
unless `keep_runs` limits their number.
"""

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tasks.config import OutputSettings
from tasks.durability.run_lock import alive
from tasks.errors import UserError
from tasks.records import RunRecord, checkpoints_in, tokens_in, variants_in
from tasks.runtime.progress import logger
from tasks.tracking import RecordedRun, Tracker, is_begun, is_registered, recorded_runs

_SECONDS_PER_DAY = 86_400


def tidy(settings: OutputSettings, own: RunRecord, *, beside: bool = True) -> None:
    """Remove files that the settings do not keep from the run folders beside the own one.

    A run's folder is never removed while the run is active, while operations wait to be shipped to
    MLflow, or while its adapter is a registered version (or MLflow can't be asked). The folder of a
    set of variants stays as long as that of any variant would.

    Args:
        settings: what is kept.
        own: the run that has succeeded.
        beside: whether to look at other runs than the own one.
    """
    try:
        if beside:
            _tidy(settings, own)
        else:
            _remove_all(own.checkpoints.glob("checkpoint-*"), own.folder)
    except Exception as error:  # noqa: BLE001 - the own run has succeeded
        logger().warning("can't remove old files in %s: %s", own.folder.parent, error)


def _tidy(settings: OutputSettings, own: RunRecord) -> None:
    runs = recorded_runs([own.folder.parent])
    for seen in runs:
        is_old = _age_days(seen.opened_ms / 1000) > settings.keep_checkpoints_days
        if seen.status == "FINISHED" or is_old:
            _remove_all(checkpoints_in(seen.run.folder).glob("checkpoint-*"), seen.run.folder)
        if is_old:
            _remove_all([tokens_in(seen.run.folder)], seen.run.folder)
    # Runs that were killed while they waited for their turn have tokens, but no journal to be found
    # by, and nobody else removes them.
    for tokens in own.folder.parent.glob(f"*/{tokens_in(Path()).name}"):
        if not is_begun(tokens.parent) and _age_days(tokens.stat().st_mtime) > (
            settings.keep_checkpoints_days
        ):
            _remove_all([tokens, tokens.parent], tokens.parent)
    if settings.keep_runs is None:
        return
    finished = [
        seen
        for seen in sorted(runs, key=lambda seen: seen.ended_ms)
        if seen.status == "FINISHED"
        and seen.run.experiment == own.experiment
        and seen.run.folder.parent == own.folder.parent  # a variant goes with its set
    ]
    for seen in finished[: -settings.keep_runs]:
        if seen.run.flow_run_id != own.flow_run_id:
            _remove_run(seen)


def _age_days(since: float) -> float:
    return (time.time() - since) / _SECONDS_PER_DAY


def _remove_all(folders: Iterable[Path], run_folder: Path) -> None:
    """Remove folders of a run, unless a process is executing it."""
    found = [folder for folder in folders if folder.exists()]
    if not found:
        return
    with suppress(UserError), alive(run_folder):
        for folder in found:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_run(seen: RecordedRun) -> None:
    runs = [seen.run, *(one.run for one in recorded_runs([variants_in(seen.run.folder)]))]
    if any(Tracker(run).num_waiting() or is_registered(run) for run in runs):
        return
    with suppress(UserError), alive(seen.run.folder):
        # The journal, which makes the folder a run, goes first: an interruption must not leave a
        # run without its adapter.
        shutil.rmtree(seen.run.folder / "tracking", ignore_errors=True)
        shutil.rmtree(seen.run.folder, ignore_errors=True)
        logger().info("removed the run %s (output.keep_runs)", seen.run.folder.name)
