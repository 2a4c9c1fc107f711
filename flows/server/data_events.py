"""Events of changed data, from `adapterflow notify` and `watch`, that can start a deployment.

The event is `adapterflow.data.updated`; its resource carries the file's absolute path and sha256.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config.reading import plain_path
from tasks.engine.reading import json_object
from tasks.errors import UserError, shortened
from tasks.records import FileRecord
from tasks.runtime import events
from tasks.runtime.atomic_files import write_atomically

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation

EVENT = "adapterflow.data.updated"
_PATH_LABEL = "adapterflow.data.path"
_LONGEST_LIST = 600


class Watched:
    """Files, and folders of files, compared with what was last reported about them.

    Args:
        paths: the files and folders.
        state_file: JSON that keeps the sha256 last reported for each path.
    """

    def __init__(self, paths: Iterable[Path], state_file: Path) -> None:
        self._paths = [plain_path(path) for path in paths]
        self._state_file = state_file
        self._seen: dict[str, tuple[int, int]] = {}
        self.unreadable: dict[Path, str] = {}
        """The files that the last check could not read, and why."""

    def changed(self) -> list[FileRecord]:
        """Return the files that are new or whose content is not what was last reported.

        A file that is still being written, because its size or modification time changed since the
        last check, is left for the next one.
        """
        reported = self._reported()
        self.unreadable = {}
        found = (self._record(file) for file in self.files() if self._is_stable(file))
        return [one for one in found if one and reported.get(str(one.path)) != one.sha256]

    def _record(self, file: Path) -> FileRecord | None:
        try:
            return FileRecord.of(file)
        except FileNotFoundError:  # removed since the listing
            return None
        except OSError as error:
            self.unreadable[file] = error.strerror or str(error)
            return None

    def note(self, reported: Iterable[FileRecord]) -> None:
        """Write down that these files were reported, also for later processes."""
        known = {**self._reported(), **{str(one.path): one.sha256 for one in reported}}
        write_atomically(self._state_file, json.dumps(known))

    def _reported(self) -> dict[str, str]:
        return json_object(self._state_file) if self._state_file.exists() else {}

    def files(self) -> list[Path]:
        """Return the files that there are now."""
        return [file for path in self._paths for file in _files(path)]

    def _is_stable(self, file: Path) -> bool:
        try:
            status = file.stat()
        except OSError:
            return False
        now = (status.st_size, status.st_mtime_ns)
        before = self._seen.get(str(file))
        self._seen[str(file)] = now
        return before == now


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []  # reading a pipe would wait for its writer
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )


def readable_files(paths: Iterable[Path]) -> list[FileRecord]:
    """Return a record of each file at and below the paths, without hidden ones.

    Raises:
        UserError: a file cannot be read.
    """
    return [_readable(file) for path in paths for file in _files(plain_path(path))]


def _readable(file: Path) -> FileRecord:
    try:
        return FileRecord.of(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def deployed_paths() -> dict[str, list[str]]:
    """Return the paths whose events start something, by its name: a deployment's `flow/name`.

    A path that ends in * is of everything that begins so. Automations that are switched off do not
    count.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import EventTrigger
    from prefect.events.schemas.events import matches

    found: dict[str, list[str]] = {}
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            trigger = one.trigger
            if not (one.enabled and isinstance(trigger, EventTrigger)):
                continue
            if any(matches(expected, EVENT) for expected in trigger.expect):
                paths = trigger.match.get(_PATH_LABEL) or "*"
                known = found.setdefault(_started_by(one, client), [])
                known.extend([paths] if isinstance(paths, str) else paths)
    return found


def _started_by(automation: "Automation", client: "SyncPrefectClient") -> str:
    """Return the name of the deployment that an automation starts, or else its own."""
    for action in automation.actions:
        if deployment_id := getattr(action, "deployment_id", None):
            deployment = client.read_deployment(deployment_id)
            return f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
    return f"the automation {automation.name!r}"


def is_used(file: Path, deployed: Mapping[str, Iterable[str]]) -> bool:
    """Return whether an event of this file starts one of the deployments."""
    return any(
        str(file).startswith(path[:-1]) if path.endswith("*") else str(file) == path
        for paths in deployed.values()
        for path in paths
    )


def nobody_uses(files: Iterable[Path], deployed: Mapping[str, Iterable[str]]) -> str:
    """Describe files that no deployment uses, and what deployments do use."""
    given = shortened(", ".join(map(str, files)), _LONGEST_LIST)
    uses = "; ".join(
        f"{name} uses {', '.join(path for path in paths if not path.endswith('/*'))}"
        for name, paths in deployed.items()
    )
    return (
        f"no deployment starts when {given} changes: "
        f"{shortened(uses, _LONGEST_LIST) or 'none is started by changed data'}; name the data in "
        "the deployment's file in deployments/, and deploy again with adapterflow up"
    )


def emit(files: Iterable[FileRecord]) -> None:
    """Send Prefect one event for each file.

    Raises:
        PassingError: the Prefect server cannot be reached.
    """
    from prefect.events import Event, Resource

    def event(file: FileRecord) -> Event:
        labels = {
            "prefect.resource.id": f"adapterflow.data.{_short(file.path)}",
            "prefect.resource.name": file.path.name,
            _PATH_LABEL: str(file.path),
            "adapterflow.data.sha256": file.sha256,
        }
        payload = {"path": str(file.path), "sha256": file.sha256}
        return Event(event=EVENT, resource=Resource(labels), payload=payload)

    events.send(map(event, files))


def _short(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]
