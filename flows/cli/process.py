"""The process in which a command executes a flow: its preparation, output and exit status."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from flows.server.programs import program
from tasks.errors import PartialFailureError, UserError, shortened
from tasks.runtime import home
from tasks.runtime.addresses import without_password
from tasks.runtime.libraries import (
    exempt_from_collection,
    import_libraries,
    import_libraries_of_checks,
    import_uncollected,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from tasks.config import RowFormat, TrainAdapterConfig
    from tasks.records import ReportRecord, RetrainedRecord, VariantsRecord


def prepare_process(check: Callable[[], None] | None = None) -> None:
    """Prepare this process for a flow run, before Prefect is imported.

    Args:
        check: called before most libraries are imported; while the embedded server starts, unless
            that would create the database of a new home.

    Raises:
        UserError: as `check`; or the home folder can't be written to, or no Prefect server answers.
        UnwritableError: the disk is full.
    """
    home.check_writable()
    from flows.server.embedded import database_file
    from flows.server.servers import check_server, use_prefect_server

    click.echo("starting (half a minute the first time) ...", err=True)
    is_new = not database_file().exists()
    if is_new:
        show_progress()
        _check_with_libraries(check)
    server = use_prefect_server()
    if not is_new:
        show_progress()
        _check_with_libraries(check)
    import_libraries()
    import_uncollected("flows.cli.runs")  # takes seconds, too
    exempt_from_collection()

    if server:
        server.wait()
    else:
        check_server()


def _check_with_libraries(check: Callable[[], None] | None) -> None:
    if check:
        import_libraries_of_checks()
        check()


def check_base(config: "TrainAdapterConfig", row_formats: "Sequence[RowFormat]") -> None:
    """Check what a training needs of its base, as `check_base_early` does."""
    from tasks.validate_inputs import check_base_early

    check_base_early(config, row_formats)


def show_progress() -> None:
    """Show our log lines on stderr, and only the warnings of libraries."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours are lines there
    from flows.cli.console import quiet_libraries, show_our_lines

    quiet_libraries()
    show_our_lines()


def execute_and_print(flow_run: "FlowRun", *, as_json: bool) -> None:
    """Execute a run and print its result.

    Raises:
        UserError: the input cannot work.
        SystemExit: the run failed or was stopped; the last line printed is the command that
            resumes it.
    """
    from flows.cli.runs import execute_any

    # Prefect 3.8 ends the run on SIGTERM and then sends the signal to its own process again: with
    # the default handler that second one would kill it before the last line is printed.
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        report = execute_any(flow_run)
    except UserError:
        _let_alert(flow_run)
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt can be resumed, too
        if isinstance(error, PartialFailureError):
            _print_what_there_is(flow_run, as_json=as_json)
        print_reason(error)
        _let_alert(flow_run)
        click.echo(f"to resume: {program('adapterflow')} resume {flow_run.id}", err=True)
        raise SystemExit(1) from None
    if as_json:
        click.echo(report.model_dump_json())
    else:
        _print_result(report)


def _let_alert(flow_run: "FlowRun") -> None:
    """Wait until an embedded server has called the webhook of `adapterflow alert`, if any."""
    from flows.server.embedded import EmbeddedServer

    if EmbeddedServer.of_this_process:
        from flows.server.automations import wait_for_alert

        # Whoever presses Ctrl-C once more does not want to wait; and the run's own error counts.
        with suppress(Exception, KeyboardInterrupt, SystemExit):
            wait_for_alert(flow_run.id)


def _print_result(report: "ReportRecord | RetrainedRecord | VariantsRecord") -> None:
    from flows.cli.comparison_summary import print_comparison
    from flows.cli.summary import print_summary
    from flows.cli.variants_summary import print_variants
    from tasks.records import ReportRecord, VariantsRecord

    if isinstance(report, ReportRecord):
        print_summary(report)
    elif isinstance(report, VariantsRecord):
        print_variants(report)
    else:
        print_comparison(report)


def _print_what_there_is(flow_run: "FlowRun", *, as_json: bool) -> None:
    """Print the result of a set of variants of which some failed."""
    from flows.cli.runs import folder_of
    from flows.cli.variants_summary import print_variants
    from tasks.inference.variant_sets import read_set

    record = read_set(folder_of(flow_run))
    if as_json:
        click.echo(record.model_dump_json())
    else:
        print_variants(record)


def exit_on_signal(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's signature
    """Raise SystemExit with the status that shells give a process ended by this signal."""
    raise SystemExit(128 + number)


def print_reason(error: BaseException) -> None:
    """Print on stderr whether a run failed, and why, or was stopped."""
    if isinstance(error, Exception):
        reason = shortened(without_password(str(error).strip())) or type(error).__name__
        click.echo(f"the run failed: {reason}", err=True)
    else:
        click.echo("the run was stopped", err=True)
