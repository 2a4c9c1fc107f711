"""Which run `adapterflow resume` means: by id, by name, or the one that was interrupted last."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from tasks import home
from tasks.errors import UserError
from tasks.records import RunRecord
from tasks.run_lock import is_alive
from tasks.tracking import RecordedRun, recorded_runs

_SHOWN_NAMES = 5


def find_run(given: str | None) -> UUID:
    """Find a run of this home by its id, its name or its folder.

    Raises:
        UserError: there is no such run, or without a name: no run was interrupted.
    """
    with suppress(ValueError):
        return UUID(given or "")
    runs = [seen.run for seen in recorded_runs([home.outputs()]) if given or _is_interrupted(seen)]
    fitting = [run for run in runs if given is None or _is_named(run, given)]
    if fitting:
        return UUID(fitting[-1].flow_run_id)
    if given is None:
        raise UserError(f"no run in {home.outputs()} was interrupted; name one by its id or name")
    names = ", ".join(run.folder.name for run in runs[-_SHOWN_NAMES:]) or "none"
    raise UserError(f"no run in {home.outputs()} is named {given!r}; the last ones: {names}")


def _is_interrupted(seen: RecordedRun) -> bool:
    return seen.status != "FINISHED" and not is_alive(seen.run.folder)


def _is_named(run: RunRecord, given: str) -> bool:
    folder = run.folder.name
    return given in {run.run_name, folder, folder.rpartition("-")[0]} or Path(given) == run.folder
