"""What runs leave on the disk: kept while somebody may need it, and no longer.

Checkpoints of a finished run serve nobody: a redo trains from its first row. Those of an
interrupted run are what it goes on from, for as many days as the settings say. A finished run's
folder holds its adapter and stays, unless the settings say how many runs are to be kept. The
tokenised rows stay for those days in any run: a redo trains on them.
"""

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tasks.config import OutputSettings
from tasks.durability.run_lock import alive
from tasks.errors import UserError
from tasks.records import RunRecord, checkpoints_in, tokens_in
from tasks.runtime.progress import logger
from tasks.tracking import RecordedRun, Tracker, is_begun, is_registered, recorded_runs

_SECONDS_A_DAY = 86_400


def tidy(settings: OutputSettings, own: RunRecord) -> None:
    """Remove from the run folders beside the own one what the settings do not keep.

    A run that is going on, that MLflow has not heard the end of, or whose adapter is a registered
    version is left alone; so is one of which that cannot be found out.
    """
    try:
        _tidy(settings, own)
    except Exception as error:  # noqa: BLE001 - the own run is done, and done well
        logger().warning("old runs in %s can't be tidied: %s", own.folder.parent, error)


def _tidy(settings: OutputSettings, own: RunRecord) -> None:
    runs = recorded_runs([own.folder.parent])
    for seen in runs:
        is_old = _age_days(seen.opened_ms / 1000) > settings.keep_checkpoints_days
        if seen.status == "FINISHED" or is_old:
            _remove_all(checkpoints_in(seen.run.folder).glob("checkpoint-*"), seen.run.folder)
        if is_old:
            _remove_all([tokens_in(seen.run.folder)], seen.run.folder)
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
        if seen.status == "FINISHED" and seen.run.experiment == own.experiment
    ]
    for seen in finished[: -settings.keep_runs]:
        if seen.run.flow_run_id != own.flow_run_id:
            _remove_run(seen)


def _age_days(since: float) -> float:
    return (time.time() - since) / _SECONDS_A_DAY


def _remove_all(folders: Iterable[Path], run_folder: Path) -> None:
    """Remove folders of a run that nobody executes."""
    found = [folder for folder in folders if folder.exists()]
    if not found:
        return
    with suppress(UserError), alive(run_folder):
        for folder in found:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_run(seen: RecordedRun) -> None:
    if Tracker(seen.run).num_waiting() or is_registered(seen.run):
        return
    with suppress(UserError), alive(seen.run.folder):
        # First the journal, which makes the folder a run: by half, it would be one without adapter.
        shutil.rmtree(seen.run.folder / "tracking", ignore_errors=True)
        shutil.rmtree(seen.run.folder, ignore_errors=True)
        logger().info("removed the run %s (output.keep_runs)", seen.run.folder.name)
