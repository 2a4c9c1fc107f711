"""The command line: `adapterflow train`, `check`, `resume` and the rest, or where they are.

Exit status 0: done. 1: the run failed, and the last line is the command that goes on from there.
2: what was given cannot work, and one message says what to do. Everything heavy is imported once
the cheap checks have passed.
"""

import sys
from pathlib import Path

import click

from flows.cli.adapter_commands import bundle, combine, export, predict, push
from flows.cli.process import prepare_process, quiet, run_to_its_end
from flows.cli.retraining_commands import history, retrain, rollback
from flows.server.data_events import notify, watch
from flows.server.stack import down, up
from tasks.durability.step_name import StepName
from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home
from tasks.runtime.addresses import without_password
from tasks.runtime.atomic_files import write_atomically

_EXISTING = click.Path(path_type=Path)
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change one setting, such as lora.r=32; may be repeated.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adapterflow")
def cli() -> None:
    """Turn a base model and a file of examples into a small, verified, tracked LoRA adapter."""
    home.check()


@cli.command()
@click.argument("webhook_url", envvar="ADAPTERFLOW_ALERT_URL")
def alert(webhook_url: str) -> None:
    """Let Prefect call WEBHOOK_URL when a run fails or crashes.

    The address is kept in a Prefect block, encrypted and hidden in its UI. Where others may see
    the command, give it in ADAPTERFLOW_ALERT_URL, or - for a line on stdin. What is sent is one
    JSON object with `text`, as chat programs take it, and `flow_run`, the run's page.
    """
    if webhook_url == "-":
        webhook_url = sys.stdin.readline().strip()
    if not webhook_url.startswith(("http://", "https://")):
        raise UserError("the webhook is no http(s) address")
    from flows.server.servers import server_at_hand

    server_at_hand("alert")
    from flows.server.automations import install_alert

    install_alert(webhook_url)
    click.echo("failed and crashed runs are told to the webhook")


@cli.command()
@click.argument("old_folder", type=_EXISTING)
def moved(old_folder: Path) -> None:
    """Set the embedded MLflow store right after the checkout was moved away from OLD_FOLDER.

    Deployments learn of the new place from the next `adapterflow up`.
    """
    from tasks.tracking import repair

    click.echo(f"{repair(old_folder.absolute())} places now lead to {home.home()}")


for command in (
    predict,
    export,
    combine,
    bundle,
    push,
    retrain,
    history,
    rollback,
    up,
    down,
    notify,
    watch,
):
    cli.add_command(command)


@cli.command()
@click.argument("config_file", metavar="CONFIG.yaml", type=_EXISTING)
@_SET
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def train(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Train an adapter as CONFIG.yaml says."""
    from tasks.config.reading import read_config
    from tasks.engine.data.examples import check_first_rows

    config = read_config(config_file, overrides)
    check_first_rows(config.data, config.base_model.task, config.base_model.labels)
    prepare_process()
    from flows.cli.runs import create_run

    run_to_its_end(create_run(config), as_json=as_json)


@cli.command()
@click.argument("config_file", metavar="CONFIG.yaml", type=_EXISTING)
@_SET
@click.option("--probe/--no-probe", default=True, help="Train some steps, for memory and time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def check(
    config_file: Path,
    overrides: tuple[str, ...],
    probe: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Say what training as CONFIG.yaml says would take; nothing is recorded."""
    from tasks.config.reading import read_config

    config = read_config(config_file, overrides)
    quiet()
    from flows.cli.check import forecast_of, print_forecast

    found = forecast_of(config, with_probe=probe)
    if as_json:
        click.echo(found.model_dump_json())
        return
    print_forecast(found)


@cli.command()
@click.argument("run", required=False)
@click.option(
    "--redo-from",
    type=click.Choice([*map(str, StepName)]),
    help="Run this step and those after it anew.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def resume(run: str | None, redo_from: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Go on with a run that failed, was stopped or was killed; completed steps are not run again.

    RUN is the run's id or name; without it, the run of this home that was interrupted last.
    """
    from flows.cli.run_search import find_run, interrupted_runs

    found = [find_run(run)] if run else interrupted_runs()
    prepare_process()
    from flows.cli.runs import reopen_last, reopen_run

    first_step = StepName(redo_from) if redo_from else None
    flow_run = reopen_run(found[0], first_step) if run else reopen_last(found, first_step)
    click.echo(f"going on with {flow_run.name}", err=True)
    run_to_its_end(flow_run, as_json=as_json)


@cli.command()
@click.argument("folders", nargs=-1, type=_EXISTING)
def ship(folders: tuple[Path, ...]) -> None:
    """Bring to MLflow what runs could not while its server was down.

    FOLDERS are output folders, or folders of runs, other than this home's.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}")
    from flows.cli.shipping import ship_and_tell

    if not ship_and_tell(folders):
        raise SystemExit(1)


@cli.command()
@click.argument("data_file", metavar="DATA", type=_EXISTING)
@click.option(
    "--base-model",
    default="HuggingFaceTB/SmolLM2-135M-Instruct",
    show_default=True,
    help="A Hub id, a local folder or a GGUF file.",
)
@click.option("--output", "-o", type=_EXISTING, default=Path("adapterflow.yaml"), show_default=True)
def init(data_file: Path, base_model: str, output: Path) -> None:
    """Write a commented starting configuration for the examples in DATA."""
    from flows.cli.starting_point import starting_configuration

    if output.exists():
        raise UserError(f"{output} exists; give another name with --output")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} to write {output.name} to")
    text = starting_configuration(data_file, base_model)
    write_atomically(output, text)
    click.echo(f"wrote {output}; start with: adapterflow train {output}")


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        cli.main(standalone_mode=False)
    except UserError as mistake:
        click.echo(f"error: {without_password(str(mistake))}", err=True)
        sys.exit(2)
    except AdapterflowError as failure:
        click.echo(f"error: {without_password(str(failure))}", err=True)
        sys.exit(1)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
