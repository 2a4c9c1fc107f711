"""The process that a command runs a flow in: made ready, and ended with the right status."""

import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import click

from flows.server.servers import check_server
from tasks.errors import UserError
from tasks.runtime.addresses import without_password
from tasks.runtime.libraries import import_libraries

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from tasks.records import ReportRecord, RetrainedRecord


def prepare_process() -> None:
    """Make this process ready for a flow run, before Prefect is imported."""
    from flows.server.embedded import use_embedded_server

    click.echo("starting (half a minute the first time) ...", err=True)
    server = use_embedded_server()
    quiet()
    import flows.cli.runs  # noqa: F401 - takes seconds, in which the server starts

    import_libraries()
    if server:
        server.wait()
    else:
        check_server()


def quiet() -> None:
    """Show our own lines, and of the libraries what is a warning."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours are lines there
    from flows.cli.console import quiet_libraries, show_our_lines

    quiet_libraries()
    show_our_lines()


def run_to_its_end(flow_run: "FlowRun", *, as_json: bool) -> None:
    """Execute a run, and print what came out; end with status 1 and how to go on if it failed."""
    from flows.cli.runs import execute_any

    # Prefect ends the run on SIGTERM, and then sends the process the signal once more.
    signal.signal(signal.SIGTERM, _stop)
    try:
        report = execute_any(flow_run)
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever ended the run, say how to go on
        _say_how_to_go_on(flow_run, error)
        raise SystemExit(1) from None
    if as_json:
        click.echo(report.model_dump_json())
    else:
        _summarise(report)


def _summarise(report: "ReportRecord | RetrainedRecord") -> None:
    from flows.cli.comparison_summary import print_comparison
    from flows.cli.summary import print_summary
    from tasks.records import ReportRecord

    if isinstance(report, ReportRecord):
        print_summary(report)
    else:
        print_comparison(report)


def _stop(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's signature
    raise SystemExit(128 + number)


def _say_how_to_go_on(flow_run: "FlowRun", error: BaseException) -> None:
    stopped = not isinstance(error, Exception)
    reason = without_password(str(error).strip()) or type(error).__name__
    click.echo("the run was stopped" if stopped else f"the run failed: {reason}", err=True)
    program = "adapterflow" if shutil.which("adapterflow") else sys.argv[0]
    click.echo(f"to go on: {program} resume {flow_run.id}", err=True)
