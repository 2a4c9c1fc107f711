"""The commands of serving: `publish`, which proves an adapter on a server, and `serve`."""

import shlex
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from flows.cli import options
from tasks.errors import AdapterflowError, PassingError, UserError, VerificationError

if TYPE_CHECKING:
    from tasks.config import ServingSettings, TrackingSettings
    from tasks.records import PublishedRecord

T = TypeVar("T")

RETRY_SECONDS = (2.0, 10.0, 30.0, 60.0)
"""Before each further attempt at a server that is away, as between those of a step."""
_SHOWN_ROWS = 20
_FOLDER = click.option(
    "--folder",
    help="Folder in which the server finds adapters, by the same path as here; default: `served` "
    "in the home folder.",
)
_STORE = click.option(
    "--tracking-uri",
    help="MLflow's address; default: MLFLOW_TRACKING_URI, that of `adapterflow up`, or the "
    "embedded store.",
)


@click.command()
@click.argument("version", metavar="models:/NAME@ALIAS")
@click.option("--to", "url", required=True, help="Address of a vLLM server, as in http://host:8000")
@_FOLDER
@_STORE
@options.json_output
def publish(
    version: str,
    url: str,
    folder: str | None,
    tracking_uri: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Load a version of a registered model into a vLLM server, and prove it there.

    The server's base, the adapter and its answers to the held-out rows that decided its promotion
    are compared with what was judged. A version that differs is unloaded again, with exit status
    1. The token is read from ADAPTERFLOW_SERVING_TOKEN or VLLM_API_KEY.
    """
    from tasks.config import ServingSettings, TrackingSettings
    from tasks.config.reading import settings_here
    from tasks.tracking import check_store

    settings = settings_here(ServingSettings, {"url": url, "folder": folder}, (), "--to")
    tracking = settings_here(TrackingSettings, {"uri": tracking_uri}, (), "--tracking-uri")
    check_store(tracking)
    from flows.cli.console import show_steps

    show_steps()
    record = published(version, settings, tracking)
    if as_json:
        click.echo(record.model_dump_json())
    else:
        print_published(record)
    tell(record)


@click.command()
@click.argument("adapters", metavar="models:/NAME@ALIAS|NAME=FOLDER...", nargs=-1, required=True)
@click.option("--print", "only_print", is_flag=True, help="Print the command only.")
@click.option("--vllm", "program", default="vllm", show_default=True, help="vLLM's program.")
@click.option("--vllm-args", "more", default="", help="Further arguments for it, in quotes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=options.integer(1, 65_535), default=8000, show_default=True)
@click.option("--base-model", help="Base model, if not the one that the first adapter names.")
@_FOLDER
@_STORE
def serve(  # noqa: PLR0913 - what a user may give
    adapters: tuple[str, ...],
    only_print: bool,  # noqa: FBT001
    program: str,
    more: str,
    host: str,
    port: int,
    base_model: str | None,
    folder: str | None,
    tracking_uri: str | None,
) -> None:
    """Start a vLLM server with adapters of one base.

    A version of a registered model is served under the name that `publish` gives it, such as
    tickets-7.
    """
    from tasks.config import ServingSettings, TrackingSettings
    from tasks.config.reading import settings_here
    from tasks.tracking import check_store

    settings = settings_here(ServingSettings, {"folder": folder}, (), "--folder")
    tracking = settings_here(TrackingSettings, {"uri": tracking_uri}, (), "--tracking-uri")
    check_store(tracking)
    from tasks.serving.vllm_command import (
        VllmServer,
        become,
        check_program,
        command_line,
        vllm_command,
    )

    if not only_print:
        check_program(program)
    server = VllmServer(host, port, program, _words(more))
    command = vllm_command(adapters, server, settings, tracking, base_model)
    click.echo(command_line(command), err=not only_print)
    if not only_print:
        become(command)


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:  # an open quotation mark
        raise UserError(f"--vllm-args {text!r} can't be read: {error}") from None


def published(
    version: str, settings: "ServingSettings", tracking: "TrackingSettings"
) -> "PublishedRecord":
    """Publish a version, with further attempts where the server or MLflow is away."""
    from tasks.serving.publishing import publish as publish_once

    return retried(lambda: publish_once(version, settings, tracking))


def retried(attempt: Callable[[], T], pauses: Sequence[float] = RETRY_SECONDS) -> T:
    """Return what an attempt returns, after further ones if something can't be reached.

    Raises:
        PassingError: the last attempt failed, too.
    """
    for pause in pauses:
        try:
            return attempt()
        except PassingError as error:
            click.echo(f"{error}; trying again in {pause:g} s", err=True)
            time.sleep(pause)
    return attempt()


def tell(record: "PublishedRecord") -> None:
    """Send the event of a try to publish, which has been recorded already.

    Raises:
        VerificationError: the version was not proven.
        AdapterflowError: Prefect can't be reached.
    """
    from flows.cli.process import prepare_process
    from tasks.records import ServingOutcome
    from tasks.runtime import events
    from tasks.serving.publication_event import publication_event

    is_published = record.outcome is ServingOutcome.PUBLISHED
    try:
        prepare_process()
        events.send([publication_event(record)])
    except AdapterflowError as error:
        what = "published" if is_published else f"not published: {record.reason}"
        raise AdapterflowError(
            f"{record.served_as} is {what}, but its event can't be sent to Prefect: {error}"
        ) from error
    if not is_published:
        raise VerificationError(f"{record.served_as} is not published: {record.reason}")


def print_published(record: "PublishedRecord") -> None:
    """Print what came of publishing, the rows that differ, and how the version is used."""
    from tasks.records import ServingOutcome

    lines = [f"{record.uri} on {record.url} (vLLM {record.server}): {record.reason}"]
    lines += [
        f"row {one.row}: judged {one.judged!r}, served {one.served!r}"
        for one in record.differing[:_SHOWN_ROWS]
    ]
    if record.outcome is ServingOutcome.PUBLISHED:
        lines.append(f'requests name it as "model": "{record.served_as}"')
    click.echo("\n".join(lines))
