"""The commands of retraining: `retrain`, `history`, `promote` and `rollback`."""

import getpass
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli import options
from flows.cli.early_checks import check_training
from tasks.errors import AdapterflowError, UserError

if TYPE_CHECKING:
    from tasks.tracking import Promoted, Registry

_STORE = click.option(
    "--tracking-uri",
    help="MLflow's address; default: MLFLOW_TRACKING_URI, that of `adapterflow up`, or the "
    "embedded store.",
)


@click.command()
@options.config_file
@options.overrides("decision.margin=0.01")
@click.option("--force", is_flag=True, help="Train on unchanged data, too, without promotion.")
@options.json_output
def retrain(config_file: Path, overrides: tuple[str, ...], force: bool, as_json: bool) -> None:  # noqa: FBT001
    """Train a new adapter, and promote it if it beats the champion."""
    from flows.cli.process import check_base, execute_and_print, prepare_process
    from tasks.config import RetrainAdapterConfig
    from tasks.config.reading import read_settings
    from tasks.engine.scoring import check_installed, open_held_out

    config = read_settings(RetrainAdapterConfig, config_file, overrides)
    row_formats = check_training(config)
    if config.evaluation.harness:
        check_installed(config.evaluation.harness)
    open_held_out(config.evaluation, config.data, config.base_model.task)
    prepare_process(lambda: check_base(config, row_formats))
    from flows.cli.runs import create_run

    execute_and_print(create_run(config, force=force), as_json=as_json)


@click.command()
@click.argument("name")
@_STORE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def history(name: str, tracking_uri: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the versions of the registered model NAME.

    Each is shown with its scores and the decision on it.
    """
    from flows.cli.comparison_summary import print_history

    versions = _registry(name, tracking_uri).versions()
    if not versions:
        raise UserError(f"there is no registered model {name!r}, or it has no versions")
    if as_json:
        click.echo(json.dumps([one.model_dump(mode="json") for one in versions]))
    else:
        print_history(versions)


@click.command()
@click.argument("name")
@click.argument("version", type=options.integer(1))
@click.option("--reason", required=True, help="Why; recorded with the version.")
@_STORE
def promote(name: str, version: int, reason: str, tracking_uri: str | None) -> None:
    """Make VERSION of the registered model NAME the champion, whatever was decided on it."""
    if not reason.strip():
        raise UserError("--reason is empty; give the reason for the promotion")
    registry = _registry(name, tracking_uri)
    done = registry.promote_by_hand(version, " ".join(reason.split()), _user())
    if done is None:
        click.echo(f"{name}: version {version} is champion already; nothing changed")
        return
    instead = f", in place of version {done.former}" if done.former else ""
    click.echo(f"{name}: version {version} is champion now{instead}")
    _send_event(done)
    _publish_where(registry, done.former, version, tracking_uri)


def _user() -> str:
    """Return the name of the operating system's user, as far as it has one."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return f"user {os.getuid()}"


def _send_event(done: "Promoted") -> None:
    """Send the promotion's event, as a retraining does; without Prefect the promotion stands."""
    from flows.cli.process import prepare_process
    from tasks.retraining.promotion import decision_event
    from tasks.runtime import events

    tags = done.version.tags
    scores: dict[str, dict[str, float]] = {}
    for key, value in tags.items():
        if key.startswith("score."):
            _, model, metric = key.split(".", 2)
            scores.setdefault(model, {})[metric] = float(value)
    event = decision_event(
        done.version,
        is_promoted=True,
        reason=done.reason,
        scores=scores,
        flow_run_id=tags.get("lineage.prefect_flow_run_id"),
    )
    try:
        prepare_process()
        events.send([event])
    except AdapterflowError as error:
        raise AdapterflowError(
            f"the promotion stands, but its event can't be sent to Prefect: {error}"
        ) from error


@click.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; recorded with the version.")
@click.option("--to", type=options.integer(1), help="A former champion; default: the last one.")
@_STORE
def rollback(name: str, reason: str, to: int | None, tracking_uri: str | None) -> None:
    """Restore the former champion of the registered model NAME."""
    if not reason.strip():
        raise UserError("--reason is empty; give the reason for the rollback")
    registry = _registry(name, tracking_uri)
    before, now = registry.roll_back(reason, to)
    click.echo(f"{name}: version {now} is champion again, in place of version {before}")
    _publish_where(registry, before, now, tracking_uri)


def _publish_where(
    registry: "Registry", former: int | None, now: int, tracking_uri: str | None
) -> None:
    """Publish the new champion to the server that the former one was published to, if any.

    Raises:
        VerificationError: it is not proven there.
        AdapterflowError: it can't be published; it is the champion all the same.
    """
    from tasks.tracking import published_to, served_from

    former_one = next((one for one in registry.versions() if one.version == former), None)
    if former_one is None or (url := published_to(former_one)) is None:
        return
    from flows.cli.serving_commands import print_published, published, tell
    from tasks.config import ServingSettings, TrackingSettings
    from tasks.retraining.publish_adapter import publish_command

    uri = f"models:/{registry.name}/{now}"
    settings = ServingSettings(url=url, folder=served_from(former_one))
    try:
        record = published(uri, settings, TrackingSettings(uri=registry.uri))
    except AdapterflowError as error:
        raise AdapterflowError(
            f"version {now} is champion, but is not published to {url}: {error}; to publish it: "
            + publish_command(uri, settings, tracking_uri)
        ) from error
    print_published(record)
    tell(record)


def _registry(name: str, uri: str | None) -> "Registry":
    from tasks.config import TrackingSettings
    from tasks.config.reading import settings_here
    from tasks.tracking import Registry, check_store

    settings = settings_here(TrackingSettings, {"uri": uri}, (), "--tracking-uri")
    return Registry(check_store(settings), name)
