"""The commands for servers: `up`, `down`, `watch`, `notify` and `alert`."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli import options
from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home

if TYPE_CHECKING:
    from flows.server.data_events import Watched
    from tasks.records import FileRecord

_PORT = options.integer(1, 65535)
_SECONDS_A_DAY = 86_400


@click.command()
@click.option("--prefect-port", type=_PORT, default=4200, show_default=True)
@click.option("--mlflow-port", type=_PORT, default=5000, show_default=True)
def up(prefect_port: int, mlflow_port: int) -> None:
    """Start Prefect, MLflow and a worker, and deploy the flows.

    The servers listen on this machine's loopback only, and run until `adapterflow down`. Called
    again, the command starts what is missing and redeploys.
    """
    from flows.server.stack import Stack

    home.check_writable()
    stack = Stack(prefect_port, mlflow_port, _print_with_time)
    click.echo("starting Prefect, MLflow and a worker (a minute the first time) ...", err=True)
    stack.up()
    for note in stack.notes:
        click.echo(note, err=True)
    click.echo(f"Prefect   {stack.prefect_url}")
    click.echo(f"MLflow    {stack.mlflow_url}")


def _print_with_time(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {line}", err=True)


@click.command()
def down() -> None:
    """Stop what `adapterflow up` started, the worker first.

    Active runs receive SIGTERM and can be resumed.
    """
    from flows.server.stack import stop_stack

    stopped = stop_stack()
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=options.PATH)
@click.option(
    "--every",
    type=options.number(0.1, _SECONDS_A_DAY),
    default=10.0,
    show_default=True,
    help="Seconds between two checks.",
)
def watch(paths: tuple[Path, ...], every: float) -> None:
    """Notify Prefect whenever the data at PATH changes, until Ctrl-C.

    A file is reported once two checks in a row found the same size and modification time. The home
    keeps what was reported last, so that changes made while nothing was watching are found, too.
    """
    _check_exist(paths)
    from flows.server.data_events import Watched, deployed_paths, is_used, nobody_uses
    from flows.server.servers import use_running_server

    use_running_server("watch")
    deployed = deployed_paths()
    watched = Watched(paths, home.prefect_store() / "watched.json")
    if (files := watched.files()) and not any(is_used(file, deployed) for file in files):
        click.echo(f"warning: {nobody_uses(paths, deployed)}", err=True)
    click.echo(f"watching {', '.join(map(str, paths))}; press Ctrl-C to stop")
    known: dict[Path, str] = {}
    while True:
        changed = watched.changed()
        for unreadable, reason in watched.unreadable.items() - known.items():
            click.echo(f"cannot read {unreadable}: {reason}; will retry", err=True)
        known = watched.unreadable
        _report(changed, watched)
        time.sleep(every)


def _report(changed: Iterable["FileRecord"], watched: "Watched") -> None:
    """Notify Prefect of each file; stop at the first that fails, which the next check finds."""
    from flows.server.data_events import emit

    for file in changed:
        try:
            emit([file])
        except AdapterflowError as error:
            click.echo(f"{error}; will retry", err=True)
            return
        watched.note([file])
        _print_notified(file)


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=options.PATH)
def notify(paths: tuple[Path, ...]) -> None:
    """Notify Prefect that the data at PATH changed.

    Deployments that train on it start. A run whose rows and configuration are those of a finished
    run trains nothing. Data that no deployment uses is a mistake.
    """
    _check_exist(paths)
    from flows.server.data_events import deployed_paths, emit, is_used, nobody_uses, readable_files
    from flows.server.servers import use_running_server

    use_running_server("notify")
    files = readable_files(paths)
    if not files:
        raise UserError(f"no files in {', '.join(map(str, paths))}; hidden ones do not count")
    deployed = deployed_paths()
    unused = [file.path for file in files if not is_used(file.path, deployed)]
    emit(files)
    if len(unused) == len(files):
        raise UserError(nobody_uses(unused, deployed))
    for file in files:
        _print_notified(file)
    if unused:
        click.echo(f"warning: {nobody_uses(unused, deployed)}", err=True)


def _print_notified(file: "FileRecord") -> None:
    click.echo(f"notified: {file.path} now has sha256 {file.sha256[:12]}")


def _check_exist(paths: Iterable[Path]) -> None:
    missing = [str(path) for path in paths if not (path.is_file() or path.is_dir())]
    if missing:
        raise UserError(f"no such file or folder: {', '.join(missing)}; name the rows to report on")


@click.command()
@click.argument("webhook_url", envvar="ADAPTERFLOW_ALERT_URL")
def alert(webhook_url: str) -> None:
    """Have Prefect call WEBHOOK_URL when a run fails or crashes.

    The text names the run, the step, the message and the command that resumes it, also for runs of
    a terminal. The URL is stored in a Prefect block, encrypted and hidden in the UI. To keep it out
    of the list of processes, set ADAPTERFLOW_ALERT_URL, or give - and write the URL to stdin. The
    body of the call is a JSON object with `text`, as chat programs expect it, and `flow_run`, the
    address of the run's page.
    """
    if webhook_url == "-":
        webhook_url = sys.stdin.readline().strip()
    if not webhook_url.startswith(("http://", "https://")):
        # The URL may hold a token, so the message does not repeat it.
        raise UserError("WEBHOOK_URL must start with http:// or https://")
    from flows.server.servers import use_running_server

    use_running_server("alert")
    from flows.server.automations import install_alert

    install_alert(webhook_url)
    click.echo("The webhook is called when a run fails or crashes.")
