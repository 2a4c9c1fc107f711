"""The commands for records in MLflow that are not where they belong: `ship` and `moved`."""

from pathlib import Path

import click

from flows.cli import options
from tasks.errors import UserError


@click.command()
@click.argument("folders", nargs=-1, type=options.PATH)
def ship(folders: tuple[Path, ...]) -> None:
    """Send to MLflow what runs recorded while its server was down.

    FOLDERS are output folders or run folders outside this home.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}")
    from flows.cli.shipping import ship_and_print

    if not ship_and_print(folders):
        raise SystemExit(1)


@click.command()
@click.argument("old_folder", type=options.PATH)
def moved(old_folder: Path) -> None:
    """Repair the embedded MLflow store of a checkout that was moved.

    OLD_FOLDER is where the checkout was. Deployments get the new location from the next
    `adapterflow up`.
    """
    from tasks.runtime import home
    from tasks.tracking import repair

    click.echo(f"{repair(old_folder.absolute())} locations now point to {home.home()}")
