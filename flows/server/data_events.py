"""`adapterflow notify` and `watch`: tell Prefect that data changed, so that a deployment may start.

The event is `adapterflow.data.updated`; its resource carries the file's absolute path and sha256.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import click

from tasks.config.reading import plain_path
from tasks.errors import AdapterflowError, UserError
from tasks.records import FileRecord
from tasks.runtime import events, home
from tasks.runtime.atomic_files import write_atomically

EVENT = "adapterflow.data.updated"
_PATHS = click.Path(path_type=Path)


class Watched:
    """Files, and folders of them, compared with what was told of them last."""

    def __init__(self, paths: Iterable[Path], memory: Path) -> None:
        self._paths = [plain_path(path) for path in paths]
        self._memory = memory
        self._seen: dict[str, tuple[int, int]] = {}
        self.unreadable: dict[Path, str] = {}
        """What the last look could not read, and why."""

    def changed(self) -> list[FileRecord]:
        """Give the files that are new or have other content than was told last.

        A file that still grows is left for the next look.
        """
        told = self._told()
        self.unreadable = {}
        found = (self._record(file) for file in self._files() if self._rests(file))
        return [one for one in found if one and told.get(str(one.path)) != one.sha256]

    def _record(self, file: Path) -> FileRecord | None:
        try:
            return FileRecord.of(file)
        except FileNotFoundError:  # removed in this moment
            return None
        except OSError as error:
            self.unreadable[file] = error.strerror or str(error)
            return None

    def note(self, told: Iterable[FileRecord]) -> None:
        """Remember what was told, also for the next process."""
        known = {**self._told(), **{str(one.path): one.sha256 for one in told}}
        write_atomically(self._memory, json.dumps(known))

    def _told(self) -> dict[str, str]:
        known: dict[str, str] = {}
        if self._memory.exists():
            known = json.loads(self._memory.read_text())
        return known

    def _files(self) -> list[Path]:
        return [file for path in self._paths for file in _files(path)]

    def _rests(self, file: Path) -> bool:
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
        return [path] if path.exists() else []
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )


def _readable(file: Path) -> FileRecord:
    try:
        return FileRecord.of(file)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error


def tell(files: Iterable[FileRecord]) -> None:
    """Send one event a file.

    Raises:
        PassingError: the Prefect server can't be reached.
    """
    from prefect.events import Event, Resource

    def event(file: FileRecord) -> Event:
        labels = {
            "prefect.resource.id": f"adapterflow.data.{_short(file.path)}",
            "prefect.resource.name": file.path.name,
            "adapterflow.data.path": str(file.path),
            "adapterflow.data.sha256": file.sha256,
        }
        payload = {"path": str(file.path), "sha256": file.sha256}
        return Event(event=EVENT, resource=Resource(labels), payload=payload)

    events.send(map(event, files))


def _short(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATHS)
def notify(paths: tuple[Path, ...]) -> None:
    """Tell Prefect that the data at PATH changed.

    Deployments that train on it start; one that finds the same rows and configuration as a finished
    run has trains nothing.
    """
    _check(paths)
    from flows.server.servers import server_at_hand

    server_at_hand("notify")
    files = [_readable(file) for path in paths for file in _files(plain_path(path))]
    tell(files)
    for file in files:
        click.echo(f"told: {file.path} is now sha256 {file.sha256[:12]}")


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATHS)
@click.option(
    "--every", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds."
)
def watch(paths: tuple[Path, ...], every: float) -> None:
    """Tell Prefect whenever the data at PATH changes, until Ctrl-C.

    A file is told of once it kept its size and time for two looks. What was told last is remembered
    in the home, so that a change while nobody watched is told, too.
    """
    _check(paths)
    from flows.server.servers import server_at_hand

    server_at_hand("watch")
    watched = Watched(paths, home.prefect_store() / "watched.json")
    click.echo(f"watching {', '.join(map(str, paths))}; Ctrl-C ends it")
    known: dict[Path, str] = {}
    while True:
        changed = watched.changed()
        for unreadable, reason in watched.unreadable.items() - known.items():
            click.echo(f"{unreadable} can't be read: {reason}; it is tried again", err=True)
        known = watched.unreadable
        for file in changed:
            try:
                tell([file])
            except AdapterflowError as error:
                click.echo(f"{error}; it is tried again", err=True)
                break
            watched.note([file])
            click.echo(f"told: {file.path} is now sha256 {file.sha256[:12]}")
        time.sleep(every)


def _check(paths: Iterable[Path]) -> None:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"there is no {', '.join(missing)}; give files or folders of rows")
