"""Which run `adapterflow resume` means: by id, by name, or the one that was interrupted last."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from flows.cli.run_list import unended
from tasks.durability.run_lock import is_alive
from tasks.errors import UserError
from tasks.records import RunRecord
from tasks.runtime import home
from tasks.tracking import RecordedRun, recorded_runs

_SHOWN_NAMES = 5


def find_run(given: str | None) -> UUID:
    """Find a run of this home by its id, its name or its folder.

    Raises:
        UserError: there is no such run, or without a name: no run was interrupted.
    """
    with suppress(ValueError):
        return UUID(given or "")
    if given is None:
        return interrupted_runs()[0]
    started = unended()
    runs = [seen.run for seen in recorded_runs([home.outputs(), *started.values()])]
    fitting = [UUID(run.flow_run_id) for run in runs if _is_named(run, given)]
    fitting += [UUID(key) for key, folder in started.items() if given == folder.name]
    if fitting:
        return fitting[-1]
    names = ", ".join(run.folder.name for run in runs[-_SHOWN_NAMES:]) or "none"
    raise UserError(f"no run of {home.home()} is named {given!r}; the last ones: {names}")


def interrupted_runs() -> list[UUID]:
    """Return the runs of this home that seem to have been interrupted, the last one first.

    Those of its command line come before those that a worker started here. One that was killed
    just after it completed is among them: only Prefect knows.

    Raises:
        UserError: there is none.
    """
    listed = [key for key, folder in reversed(unended().items()) if not is_alive(folder)]
    recorded = [seen.run for seen in recorded_runs([home.outputs()]) if _is_interrupted(seen)]
    found = [*listed, *(run.flow_run_id for run in reversed(recorded))]
    if not found:
        raise UserError(f"no run of {home.home()} was interrupted; name one by its id or name")
    return [UUID(one) for one in dict.fromkeys(found)]


def _is_interrupted(seen: RecordedRun) -> bool:
    return seen.status != "FINISHED" and not is_alive(seen.run.folder)


def _is_named(run: RunRecord, given: str) -> bool:
    folder = run.folder.name
    return given in {run.run_name, folder, folder.rpartition("-")[0]} or Path(given) == run.folder
