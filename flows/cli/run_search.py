"""The run that `adapterflow resume` selects: by id, by name, or the one interrupted last."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from flows.cli.run_list import unfinished_runs
from tasks.durability.run_lock import is_alive
from tasks.errors import UserError
from tasks.records import RunRecord, variants_in
from tasks.runtime import home
from tasks.tracking import RecordedRun, recorded_runs

_SHOWN_NAMES = 5


def find_run(given: str | None) -> UUID:
    """Return the id of a run of this home, given its id, name or folder.

    None selects the run that was interrupted last.

    Raises:
        UserError: there is no such run, or none was interrupted.
    """
    with suppress(ValueError):
        return UUID(given or "")
    if given is None:
        return interrupted_runs()[0]
    started = unfinished_runs()
    runs = [seen.run for seen in recorded_runs([home.outputs(), *started.values()])]
    matching = [UUID(run.flow_run_id) for run in runs if _is_named(run, given)]
    matching += [UUID(key) for key, folder in started.items() if given == folder.name]
    if matching:
        return matching[-1]
    names = ", ".join(run.folder.name for run in runs[-_SHOWN_NAMES:]) or "none"
    raise UserError(f"no run of {home.home()} is named {given!r}; the last ones: {names}")


def interrupted_runs() -> list[UUID]:
    """Return the runs of this home that seem to have been interrupted, the newest first.

    Runs started by the command line come before those started by a worker. A run that was killed
    just after it completed may be among them: only Prefect knows that it completed.

    Raises:
        UserError: there is none.
    """
    listed = [key for key, folder in reversed(unfinished_runs().items()) if not is_alive(folder)]
    # A variant is resumed with its set, whose folder it is in.
    seen_runs = [seen for seen in recorded_runs([home.outputs()]) if not _is_variant(seen.run)]
    recorded = [seen.run for seen in seen_runs if _is_interrupted(seen)]
    found = [*listed, *(run.flow_run_id for run in reversed(recorded))]
    if not found:
        raise UserError(f"no run of {home.home()} was interrupted; give the id or name of a run")
    return [UUID(one) for one in dict.fromkeys(found)]


def _is_interrupted(seen: RecordedRun) -> bool:
    return seen.status != "FINISHED" and not is_alive(seen.run.folder)


def _is_variant(run: RunRecord) -> bool:
    folder = run.folder.parent
    return folder == variants_in(folder.parent)


def _is_named(run: RunRecord, given: str) -> bool:
    folder = run.folder.name
    return given in {run.run_name, folder, folder.rpartition("-")[0]} or Path(given) == run.folder
